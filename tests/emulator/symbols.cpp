/* Names of kernels for messages, traces and counts, from the symbol table of the program's own file: dladdr knows
 * neither static functions nor those of a program that exports nothing. */
#include "tests/emulator/engine.h"
#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <mutex>
#include <stdlib.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

namespace cs
{
struct Symbol {
    uintptr_t at;
    const char *name;
};

static int first_object(struct dl_phdr_info *info, size_t, void *base)
{
    *(uintptr_t *)base = info->dlpi_addr;
    return 1;
}

static std::vector<Symbol> *read_symbols()
{
    auto *symbols = new std::vector<Symbol>();
    uintptr_t base = 0;
    dl_iterate_phdr(first_object, &base);
    const int fd = open("/proc/self/exe", O_RDONLY);
    struct stat s;
    if (fd < 0 || fstat(fd, &s) != 0) return symbols;
    const char *file = (const char *)mmap(nullptr, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (file == (const char *)MAP_FAILED) return symbols;
    const Elf64_Ehdr *head = (const Elf64_Ehdr *)file;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + head->e_shoff);
    for (int i = 0; i < head->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *table = (const Elf64_Sym *)(file + sections[i].sh_offset);
        const char *names = file + sections[sections[i].sh_link].sh_offset;
        for (size_t k = 0; k < sections[i].sh_size / sizeof *table; k++)
            if (ELF64_ST_TYPE(table[k].st_info) == STT_FUNC)
                symbols->push_back({base + table[k].st_value, names + table[k].st_name});
    }
    return symbols;
}

/* "void decode<64>(int*, float)" -> "decode<64>" */
static std::string short_name(const char *mangled)
{
    int status;
    char *text = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
    std::string name = text ? text : mangled;
    free(text);
    if (!name.empty() && name.back() == ')') {
        int depth = 0;
        size_t i = name.size();
        while (i-- > 0) {
            depth += name[i] == ')' ? 1 : name[i] == '(' ? -1 : 0;
            if (!depth) break;
        }
        name.resize(i);
    }
    if (name.compare(0, 5, "void ") == 0) name.erase(0, 5);
    const std::string unnamed = "(anonymous namespace)::";
    for (size_t at; (at = name.find(unnamed)) != std::string::npos;) name.erase(at, unnamed.size());
    return name;
}

const char *kernel_name(const void *kernel)
{
    static std::mutex m;
    static const std::vector<Symbol> *symbols;
    struct Known {
        const void *kernel;
        const char *name;
    };
    static auto *known = new std::vector<Known>();
    std::lock_guard<std::mutex> l(m);
    for (const Known &k : *known)
        if (k.kernel == kernel) return k.name;
    if (have_msan()) return "kernel"; /* libstdc++'s demangler writes unseen by MSan */
    if (!symbols) symbols = read_symbols();
    std::string name = "kernel";
    for (const Symbol &s : *symbols)
        if (s.at == (uintptr_t)kernel) {
            name = short_name(s.name);
            break;
        }
    char *copy = (char *)malloc(name.size() + 1);
    if (!copy) return "kernel";
    for (size_t i = 0; i <= name.size(); i++) copy[i] = name.c_str()[i];
    known->push_back({kernel, copy});
    return copy;
}
} // namespace cs
