/* What a tensor_file is made of: inside this room only. */
#ifndef FULGUR_FORMAT_TENSOR_FILE_H
#define FULGUR_FORMAT_TENSOR_FILE_H

#include "format/gguf.h"
#include "format/tensors.h"

typedef struct tensor_shard {
    char *path;
    file_map map; /* zero if the bytes are the caller's */
    char *names;  /* of its tensors, one after the other, each with its zero */
} tensor_shard;

struct tensor_file {
    ful_alloc alloc;
    tensor_shard *shards;
    uint32_t shard_count;
    tensor_info *tensors;
    size_t tensor_count, tensor_capacity;
    uint64_t bytes;
    gguf_keys *keys; /* of the first file of a GGUF; else NULL */
};

/* Room for `count` shards, of which none counts yet. */
ful_result tensor_file_shards(tensor_file *file, size_t count, const char *path);
/* The next of them, from its mapped file; takes `path` over, also on failure. */
ful_result tensor_file_map(tensor_file *file, char *path, tensor_shard **out);
/* Sorts by name; a name that is there twice is an error. */
ful_result tensor_file_sort(tensor_file *file);

ful_result safetensors_read(tensor_file *file, tensor_shard *shard, const uint8_t *data,
                            uint64_t bytes);
/* `path`: model.safetensors.index.json */
ful_result safetensors_open_index(tensor_file *file, const char *path);
ful_result gguf_open(tensor_file *file, const char *path); /* all parts of a split file */
ful_result gguf_read(tensor_file *file, tensor_shard *shard, const uint8_t *data, uint64_t bytes);

bool gguf_magic(const uint8_t *data, uint64_t bytes);
const char *path_last(const char *path); /* behind the last separator */
bool text_ends_with(const char *text, const char *end);

#endif
