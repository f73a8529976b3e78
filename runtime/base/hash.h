/* Hashes. hash_bytes (XXH3, 64 bits, seeded) for tables; sha256 where collisions could be sought (prefix keys, API
 * keys). Pure, any thread. */
#ifndef RUNTIME_BASE_HASH_H
#define RUNTIME_BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint64_t hash_xxh64(const void *data, size_t length, uint64_t seed); /* XXH64: where other programs compute it too */
uint64_t hash_bytes(const void *data, size_t length, uint64_t seed);

void sha256(const void *data, size_t length, uint8_t digest[32]);
void hmac_sha256(const void *key, size_t key_length, const void *data, size_t length, uint8_t digest[32]);

/* Compares in a time that depends on length alone. */
bool equal_constant_time(const void *a, const void *b, size_t length);

#endif
