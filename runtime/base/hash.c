/* xxhash and OpenSSL's libcrypto behind hash.h.
 *
 * sha256 uses libcrypto's old streaming functions: the one-shot SHA256() of OpenSSL 3 looks the algorithm up and
 * allocates at each call (568 ns for 80 bytes against 97), and prefix keys are made in the step loop, which allocates
 * nothing. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "runtime/base/hash.h"

#include "runtime/base/check.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <xxhash.h>

uint64_t hash_xxh64(const void *data, size_t length, uint64_t seed)
{
    return XXH64(data, length, seed);
}

uint64_t hash_bytes(const void *data, size_t length, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, length, seed);
}

void sha256(const void *data, size_t length, uint8_t digest[32])
{
    SHA256_CTX context;
    CHECK(SHA256_Init(&context) && SHA256_Update(&context, data, length) && SHA256_Final(digest, &context));
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
