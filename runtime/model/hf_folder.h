/* A Hugging Face folder as a model: config.json, the safetensors files, the tokeniser and the chat template. Used by
 * model.c. */
#ifndef RUNTIME_MODEL_HF_FOLDER_H
#define RUNTIME_MODEL_HF_FOLDER_H

#include "runtime/base/status.h"
#include "runtime/model/model.h"

/* Fills in a model of which only the arena is set; on failure what was filled stays, for model_close. Errors: those of
 * hf_config_read, safetensors_open_folder, hf_weights_place and vocab_read_folder; err begins with a file's name where
 * one is to blame. */
NODISCARD enum status hf_folder_open(const char *folder, struct model *model, struct error *err);

#endif
