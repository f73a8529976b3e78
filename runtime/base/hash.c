/* xxhash and OpenSSL's libcrypto behind hash.h. */
#include "runtime/base/hash.h"

#include "runtime/base/check.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <xxhash.h>

uint64_t hash_bytes(const void *data, size_t length, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, length, seed);
}

void sha256(const void *data, size_t length, uint8_t digest[32])
{
    SHA256(data, length, digest);
}

void hmac_sha256(const void *key, size_t key_length, const void *data, size_t length, uint8_t digest[32])
{
    CHECK(key_length <= 1u << 20);
    CHECK(HMAC(EVP_sha256(), key, (int)key_length, data, length, digest, NULL) != NULL);
}

bool equal_constant_time(const void *a, const void *b, size_t length)
{
    return CRYPTO_memcmp(a, b, length) == 0;
}
