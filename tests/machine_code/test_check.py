#!/usr/bin/env python3
"""The gate itself: that it lets a sound loop pass and finds each fault in made-up listings."""
import unittest

import check

HEAD = "matmul_avx512.c.o:     file format elf64-x86-64\n\n0000000000000000 <matmul_Q4_0_16>:\n"
ENTRY = ["push   %rbp", "mov    %rdi,-0x10(%rsp)", "call   900 <other>"]
DECODE = ["vmovdqa64 (%rcx),%zmm1", "vpandd %zmm3,%zmm1,%zmm2", "vpbroadcastd 0x200(%rax),%zmm4"]
DOTS = [f"vpdpbusd 0x{4 * i:x}(%rax){{1to16}},%zmm2,%zmm4" for i in range(8)]
SCALE = ["vcvtdq2ps %zmm4,%zmm4", "vfmadd231ps 0x240(%rax){1to16},%zmm4,%zmm31"]
LIMIT = check.LOOPS["Q4_0"][15] * check.SLACK


def listing(loop, entry=ENTRY, head=HEAD, after=()):
    """entry, then the loop as a whole at 0x100 with its jump back, then the way out."""
    lines = [f"   {4 * i:x}:\t{text}" for i, text in enumerate(entry)]
    lines += [f"   {0x100 + 4 * i:x}:\t{text}" for i, text in enumerate([*loop, "jb     100 <matmul_Q4_0_16+0x100>"])]
    lines += [f"   {0x800 + 4 * i:x}:\t{text}" for i, text in enumerate([*after, "mov    -0x8(%rsp),%rbx", "ret"])]
    return head + "\n".join(lines) + "\n"


def findings(text, kind="Q4_0", rows=16):
    body = check.parse(text)["matmul_avx512.c.o"]["matmul_Q4_0_16"]
    return check.check_instance("matmul_Q4_0_16", kind, rows, body)


SOUND = DECODE + DOTS + SCALE


class Loops(unittest.TestCase):
    def test_sound_loop_passes(self):
        self.assertEqual(findings(listing(SOUND)), [])

    def test_faults_are_found(self):
        faults = [
            ("a call in the loop", "call   900 <other>"),
            ("1 accesses to the stack", "vmovaps 0x40(%rsp),%zmm7"),
            ("1 accesses to the stack", "vmovaps %zmm7,-0x40(%rbp)"),
            ("1 accesses to the stack", "cmp    0x8(%rsp),%rcx"),
            ("a shuffle in the loop", "vpermd %zmm1,%zmm2,%zmm3"),
            ("a shuffle in the loop", "vpshufb %zmm1,%zmm2,%zmm3"),
            ("a shuffle in the loop", "vpunpcklbw %zmm1,%zmm2,%zmm3"),
            ("a shuffle in the loop", "vpbroadcastd %xmm1,%zmm3"),
            ("not a dot of VNNI", "vpmaddubsw %zmm1,%zmm2,%zmm3"),
            ("a dot without a broadcast", "vpdpbusd %zmm5,%zmm2,%zmm4"),
        ]
        for wanted, line in faults:
            with self.subTest(line=line):
                found = findings(listing([*DECODE, line, *DOTS * 3, *SCALE]))
                self.assertEqual(len(found), 1, found)
                self.assertIn(wanted, found[0])

    def test_instructions_a_dot_are_limited(self):
        room = int(LIMIT * 8) - len(SOUND) - 1  # the jump is an instruction too
        self.assertEqual(findings(listing(["add    $0x40,%rax"] * room + SOUND)), [])
        found = findings(listing(["add    $0x40,%rax"] * (room + 1) + SOUND))
        self.assertEqual(len(found), 1)
        self.assertIn("instructions a dot", found[0])

    def test_no_loop_is_a_finding(self):
        self.assertIn("no loop", findings(listing(["add    $0x40,%rax"]))[0])

    def test_outer_loop_is_not_judged(self):
        outer = ["vmovups %zmm31,(%r8)", "mov    -0x20(%rsp),%rcx", "jne    0 <matmul_Q4_0_16>"]
        self.assertEqual(findings(listing(SOUND, after=outer)), [])

    def test_block_moved_out_of_the_loop_belongs_to_it(self):
        cold = ["vmovaps 0x40(%rsp),%zmm7", "jmp    104 <matmul_Q4_0_16+0x104>"]
        text = listing(["je     808 <matmul_Q4_0_16+0x808>", *SOUND], after=["mov    %rax,%rbx", "ret", *cold])
        self.assertEqual([f for f in findings(text) if "1 accesses to the stack" in f][1:], [])
        self.assertTrue(any("1 accesses to the stack" in f for f in findings(text)))

    def test_f32_folds_from_four_rows_on(self):
        loop = ["vbroadcastss (%rax),%zmm1", "vfmadd231ps %zmm1,%zmm0,%zmm2"]
        self.assertEqual(findings(listing(loop), "f32", 3), [])
        self.assertIn("without a broadcast", findings(listing(loop * 8), "f32", 4)[0])

    def test_every_instance_has_a_row_in_the_table(self):
        objects = check.parse(listing(SOUND, head=HEAD.replace("Q4_0_16", "Q9_0_16")))
        found = check.check_loops(objects)
        self.assertTrue(any("without a row in LOOPS" in f for f in found))
        self.assertTrue(any("matmul_Q4_0_16: not found" in f for f in found))


class InstructionSets(unittest.TestCase):
    def found(self, file, instruction):
        text = f"{file}:     file format elf64-x86-64\n0000000000000000 <f>:\n   0:\t{instruction}\n   4:\tret\n"
        return len(check.check_instruction_sets(check.parse(text)))

    def test_each_file_has_its_set(self):
        table = [
            ("matmul.c.o", "addps  %xmm1,%xmm0", 0),
            ("matmul.c.o", "vaddps %xmm1,%xmm0,%xmm0", 1),
            ("matmul.c.o", "vpaddd %ymm1,%ymm0,%ymm0", 1),
            ("matmul.c.o", "vpaddd %zmm1,%zmm0,%zmm0", 1),
            ("matmul.c.o", "kmovw  %k1,%eax", 1),
            ("matmul.c.o", "shlx   %rcx,%rax,%rax", 1),
            ("matmul.c.o", "verr   %ax", 0),
            ("matmul_avx2.c.o", "vpaddd %ymm1,%ymm0,%ymm0", 0),
            ("matmul_avx2.c.o", "vpaddd %zmm1,%zmm0,%zmm0", 1),
            ("matmul_avx2.c.o", "vpaddd %ymm17,%ymm0,%ymm0", 1),
            ("matmul_avx2.c.o", "vpcmpeqd %ymm1,%ymm0,%k1", 1),
            ("matmul_avxvnni.c.o", "{vex} vpdpbusd %ymm1,%ymm0,%ymm2", 0),
            ("matmul_avxvnni.c.o", "vpdpbusd (%rax){1to8},%ymm0,%ymm2", 1),
            ("matmul_avx512.c.o", "vpaddd %zmm1,%zmm0,%zmm0", 0),
        ]
        for file, instruction, wanted in table:
            with self.subTest(file=file, instruction=instruction):
                self.assertEqual(self.found(file, instruction), wanted)


if __name__ == "__main__":
    unittest.main()
