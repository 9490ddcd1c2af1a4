/* What lies behind the handles of fulgur/ops.h. */
#ifndef FULGUR_OPS_PUBLIC_H
#define FULGUR_OPS_PUBLIC_H

#include "fulgur/ops.h"
#include "ops/op.h"

struct ful_buffer {
    ful_device *device;
    gpu_buffer gpu; /* rounded up to whole words */
    uint64_t bytes; /* as asked for */
    char *name;
};

struct ful_tensor {
    ful_device *device;
    gpu_tensor gpu;
    char *name;
};

struct ful_kv {
    ful_device *device;
    op_kv gpu;
};

typedef struct stream_scratch {
    struct stream_scratch *next;
    gpu_buffer buffer;
} stream_scratch;

struct ful_stream {
    ful_device *device;
    op_context ctx;
    gpu_commands *commands;
    gpu_buffer step;
    stream_scratch *scratch;
    uint32_t max_rows;  /* of all recorded ops */
    uint32_t kv_tokens; /* least capacity among the caches used; 0 = none */
    bool ended;
};

/* Memory that lives as long as the stream. */
ful_result stream_scratch_get(ful_stream *s, uint64_t bytes, gpu_range *out);

#endif
