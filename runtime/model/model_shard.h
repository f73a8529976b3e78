/* A rank's part of a model, for tensor parallelism: a struct model whose spec and views are what the rank computes.
 *
 * Who packs or loads weights needs to know nothing: rows of a matrix are cut by offset, columns by a tensor_recipe, and
 * a part's spec describes its views as any model's does. What a device must do besides is in struct model_part: sum
 * over ranks what O and down give, look up embeddings by owner, put logits together.
 *
 *   Q, K, V, their biases   rows, by KV head: with as many KV heads as ranks or more, each rank has its share of them
 *                           (uneven where it must be) and all their query heads. With fewer, rank r has a copy of KV
 *                           head floor(r KH / R) and its share of that head's query heads. So heads % kv_heads == 0
 *                           holds for every part
 *   O                       columns of those query heads
 *   gate, up; down          the same share of F: rows; columns. Cut on blocks of down's type and multiples of 32
 *   experts                 the same of every expert; where a share would be under 128 or blocks are too few, whole
 *                           experts instead. A sum over ranks ends the layer either way
 *   embedding, head         rows: vocab_stride (a multiple of 64, of 16 for small vocabularies) a rank
 *   norms, router           all of it
 *
 * Where the columns of O begin inside a block of its type (K-quants with heads of 64, say), O becomes F32: the same
 * values bit for bit at 7 times the bytes of 4-bit codes, a fifth more for the whole of a 7B model at Q4_K. Rejected:
 * rounding them to another 4-bit type, which would make R a part of a model's quality. Uneven shares cost what the
 * largest has beyond the mean: nothing is padded.
 * Source of the splits: Shoeybi et al. 2019, arXiv:1909.08053. */
#ifndef RUNTIME_MODEL_MODEL_SHARD_H
#define RUNTIME_MODEL_MODEL_SHARD_H

#include "runtime/model/model.h"

enum { MODEL_RANKS_MAX = 64 };

/* Rank's part of ranks. It borrows from whole, whose file must stay open until the part is closed (model_close) or has
 * let go of its weights (model_release_file). ranks 1: a part that is the whole. Caller owns the part; any thread.
 * ST_INVAL: the model does not divide so; err says why and names the counts that fit. ST_NOMEM. */
NODISCARD enum status model_shard(const struct model *whole, uint32_t rank, uint32_t ranks, struct model **part,
                                  struct error *err);

/* Does the model divide into so many parts? */
bool model_shard_fits(const struct model *whole, uint32_t ranks);

#endif
