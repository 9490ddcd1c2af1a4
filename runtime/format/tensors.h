/* Named tensors in files: what every container format gives to the model. */
#ifndef FULGUR_FORMAT_TENSORS_H
#define FULGUR_FORMAT_TENSORS_H

#include "format/gguf.h"

enum { TENSOR_MAX_DIMS = 8 };

typedef struct tensor_info {
    const char *name;      /* owned by the file */
    const char *path;      /* the file that holds it */
    ful_type type;         /* FUL_TYPE_DEFAULT: a type fulgur does not read; type_name says which */
    const char *type_name; /* as in the file: "BF16", "I32", ... */
    uint32_t n_dims;
    uint64_t dims[TENSOR_MAX_DIMS]; /* slowest first, as torch prints them */
    uint64_t bytes;
    const uint8_t *data; /* mapped; 1-byte alignment only */
} tensor_info;

typedef struct tensor_file tensor_file; /* one file, or several joined by an index */

/* `path`: a .safetensors file, a model.safetensors.index.json, a .gguf file (any part of a split
 * one), or a folder that holds one of them. Checks every header: sizes, overlaps, types, names;
 * reads no tensor data. */
ful_result tensor_file_open(const ful_alloc *a, const char *path, tensor_file **out);
/* The same of a whole file's bytes, which stay the caller's and must outlive it; `name` stands for
 * its path. */
ful_result tensor_file_read(const ful_alloc *a, const char *name, const void *data, uint64_t bytes,
                            tensor_file **out);
void tensor_file_close(tensor_file **file);

uint32_t tensor_file_count(const tensor_file *file);
const tensor_info *tensor_file_at(const tensor_file *file, uint32_t index);     /* sorted by name */
const tensor_info *tensor_file_find(const tensor_file *file, const char *name); /* NULL if absent */
uint64_t tensor_file_bytes(const tensor_file *file);                            /* of all files */
const gguf_keys *tensor_file_keys(const tensor_file *file); /* NULL unless it is a GGUF */

/* fp16 and bf16 <-> fp32 (round to nearest even), for the host's reference paths and for packing.
 */
float half_to_float(uint16_t h);
uint16_t float_to_half(float f);
float bfloat_to_float(uint16_t b);
uint16_t float_to_bfloat(float f);
float element_to_float(ful_type type, const void *p); /* F32, F16, BF16; unaligned */

#endif
