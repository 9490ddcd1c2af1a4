/* The device layer: everything that speaks Vulkan. Other rooms see this header only.
 *
 * A gpu_commands object records dispatches with the ranges they read and write; it places barriers
 * where ranges meet, closes a submission before it would exceed the device's time budget, and can
 * be submitted many times. */
#ifndef FULGUR_GPU_GPU_H
#define FULGUR_GPU_GPU_H

#ifndef VK_NO_PROTOTYPES
#define VK_NO_PROTOTYPES
#endif
#include <volk.h>

#include "base/alloc.h"
#include "base/log.h"
#include "base/thread.h"
#include "fulgur/device.h"

/* ---- instance ---- */
const ful_alloc *instance_alloc(const ful_instance *instance);
const log_sink *instance_log(const ful_instance *instance);

/* ---- device ---- */
ful_instance *device_instance(const ful_device *device);
const ful_alloc *device_alloc(const ful_device *device);
const log_sink *device_log(const ful_device *device);
const ful_caps *device_caps(const ful_device *device);
/* True for drivers that run on the processor: lanes are cheap, barriers and shared memory are not.
 */
bool device_is_cpu(const ful_device *device);
/* True for the library's own device (cpu/cpu.h): its kernels are those of the narrow shape in f32.
 */
bool device_is_built_in(const ful_device *device);
/* Largest range one binding of a tensor may have: min(storage_range, allocation, 4 GiB, or 1 GiB
 * with less than 16 GiB of memory) rounded down to 256 bytes. */
uint64_t device_window_bytes(const ful_device *device);
/* Arithmetic that one dispatch of plain kernels may hold to stay within max_dispatch_ms at the
 * speed first guessed for the device, so that sizes that are planned once stay what they were.
 * Infinite without a bound. */
double device_dispatch_flops(const ful_device *device);
/* Bytes that may still be allocated by the budget and memory_limit_bytes. */
uint64_t device_free_bytes(const ful_device *device);

/* Numbers that ops measured on this device and want to find again: loaded by ful_device_open from
 * beside the pipeline cache, 0 where there are none. What they mean is the ops' business. They are
 * written only while nothing else uses the device. */
enum { DEVICE_CHOICES = 64 };
uint32_t device_choice(const ful_device *device, uint32_t index);
void device_choice_set(ful_device *device, uint32_t index, uint32_t word);
/* Keeps them; does nothing if the device was opened without a cache. */
ful_result device_choices_store(ful_device *device);

/* ---- buffers ---- */
typedef enum gpu_memory {
    GPU_MEMORY_DEVICE,  /* weights, activations, states: fastest for the device; mapped if that is
                           free */
    GPU_MEMORY_HOST,    /* written by the host each step, read by the device; always mapped */
    GPU_MEMORY_READBACK /* written by the device, read by the host; always mapped, cached if
                           possible */
} gpu_memory;

typedef struct gpu_buffer {
    VkBuffer vk;
    VkDeviceMemory memory;
    uint64_t bytes; /* as asked for */
    uint64_t memory_bytes;
    void *mapped; /* NULL unless host-visible */
    bool coherent;
    uint32_t memory_type; /* index of the Vulkan memory type */
    const char *name;     /* static or owned by the creator; for messages */
} gpu_buffer;

/* A part of a buffer. Empty (buffer == NULL) means "not there". Offsets are multiples of 256. */
typedef struct gpu_range {
    const gpu_buffer *buffer;
    uint64_t offset, bytes;
} gpu_range;

/* Zero-size is an error. Usable as storage, uniform, indirect, transfer source and destination.
 * FUL_ERR_DEVICE_MEMORY names the buffer, the bytes asked for and what is free. Contents are
 * undefined. A failed device-local allocation is tried in host-visible memory before it is an error
 * only for GPU_MEMORY_HOST and GPU_MEMORY_READBACK. */
ful_result gpu_buffer_create(ful_device *device, uint64_t bytes, gpu_memory memory,
                             const char *name, gpu_buffer *out);
void gpu_buffer_destroy(ful_device *device,
                        gpu_buffer *buffer); /* zeroes it; a zero one is allowed */
/* Make host writes visible to the device, or device writes to the host; no-ops on coherent memory.
 */
ful_result gpu_buffer_flush(ful_device *device, const gpu_buffer *buffer, uint64_t offset,
                            uint64_t bytes);
ful_result gpu_buffer_invalidate(ful_device *device, const gpu_buffer *buffer, uint64_t offset,
                                 uint64_t bytes);
/* Through mapped memory or staging; each waits until the bytes are there. Not for hot paths. Any
 * offset and size that are multiples of 4. The device must not be using the range. */
ful_result gpu_range_write(ful_device *device, gpu_range dst, uint64_t offset, const void *data,
                           uint64_t bytes);
ful_result gpu_range_read(ful_device *device, gpu_range src, uint64_t offset, void *data,
                          uint64_t bytes);
ful_result gpu_range_fill(ful_device *device, gpu_range dst, uint32_t word);

static inline gpu_range gpu_whole(const gpu_buffer *b)
{
    gpu_range r = {b, 0, b->bytes};
    return r;
}

static inline gpu_range gpu_part(gpu_range r, uint64_t offset, uint64_t bytes)
{
    gpu_range p = {r.buffer, r.offset + offset, bytes};
    return p;
}

/* ---- uploads: many writes through two staging buffers while the next bytes are prepared ---- */
typedef struct gpu_upload gpu_upload;
ful_result gpu_upload_begin(ful_device *device, uint64_t total_bytes, ful_progress_fn progress,
                            void *progress_ctx, gpu_upload **out);
/* Gives room for `bytes` (at most gpu_upload_max) to be filled before the next call on `u`; they
 * will be copied to dst at `offset`. For mapped destinations the room is the destination itself. */
ful_result gpu_upload_room(gpu_upload *u, gpu_range dst, uint64_t offset, uint64_t bytes,
                           void **room);
uint64_t gpu_upload_max(const gpu_upload *u); /* 8 MiB or less */
/* Waits for all copies. Frees *u in every case. */
ful_result gpu_upload_end(gpu_upload **u);
void gpu_upload_cancel(gpu_upload **u);

/* ---- tensors: weight matrices [experts][rows][cols] in windows no larger than one binding ---- */
typedef struct gpu_window {
    gpu_buffer buffer;
    uint32_t expert0, expert_count; /* whole experts, or ... */
    uint32_t row0, row_count;       /* ... some rows of one; dense tensors have one expert */
} gpu_window;

typedef struct gpu_tensor {
    ful_type type;                /* in parts: f32 if one of them is, else the first's */
    uint32_t experts, rows, cols; /* dense: experts = 1 */
    uint64_t row_bytes;           /* stride; a multiple of 16 */
    uint32_t window_count;
    gpu_window *windows;  /* in order of expert, then row */
    gpu_buffer row_scale; /* [experts*rows] f32 powers of two that bring rows into fp16's range when
                           * multiplied; vk == NULL if no row needs one */
    /* Rows of several types: then it has no windows and no row_bytes of its own. A part's windows
     * hold its own rows, counted from the whole's first; its `rows` are the whole's. */
    uint32_t part_count;
    struct gpu_tensor *parts;
} gpu_tensor;

/* Rows within a window start at (expert - expert0) * row_count + (row - row0), times row_bytes.
 * When an expert is split, every window but its last holds a multiple of 64 rows. */
ful_result gpu_tensor_create(ful_device *device, ful_type type, uint32_t experts, uint32_t rows,
                             uint32_t cols, const char *name, gpu_tensor *out);
/* A dense tensor of rows[0] rows of types[0], then rows[1] of types[1] and so on: in parts where
 * neighbours' types differ. */
ful_result gpu_tensor_create_joined(ful_device *device, const ful_type *types, const uint32_t *rows,
                                    uint32_t count, uint32_t cols, const char *name,
                                    gpu_tensor *out);
void gpu_tensor_destroy(ful_device *device, gpu_tensor *tensor);
uint64_t gpu_tensor_bytes(const gpu_tensor *tensor);
/* Where one row lives. */
gpu_range gpu_tensor_row(const gpu_tensor *tensor, uint32_t expert, uint32_t row);

/* ---- pipelines ---- */
enum { GPU_MAX_SPEC = 16, GPU_MAX_BUFFERS = 8 };

typedef struct gpu_pipeline gpu_pipeline; /* owned by the device, alive until it is closed */

/* Storage buffers are bindings 0..buffer_count-1 of set 0; the step parameters, if used, are a
 * uniform buffer at binding 8 (STEP_BINDING). Specialisation constants have ids 0..spec_count-1 and
 * are all passed. */
typedef struct gpu_pipeline_desc {
    const char *module; /* name in shaders/variants.txt */
    uint32_t buffer_count;
    bool uniform;
    uint32_t subgroup_size; /* for modules that need `subgroup` on devices that can set it; 0: the
                             * device's own */
    uint32_t push_bytes;
    uint32_t spec_count;
    uint32_t spec[GPU_MAX_SPEC];
} gpu_pipeline_desc;

/* True if the module is in this build, the device has every feature its `needs` names and no
 * self-test spoke against it. */
bool gpu_module_usable(const ful_device *device, const char *module);
/* Finds or notes down the pipeline; compiles it at once unless a batch is open. FUL_ERR_UNSUPPORTED
 * if the module is not usable, FUL_ERR_SELFTEST if that is for its results. */
ful_result gpu_pipeline_get(ful_device *device, const gpu_pipeline_desc *desc, gpu_pipeline **out);
/* Between begin and end pipelines are only noted down; end compiles them on all processors, but for
 * those of modules that were quarantined meanwhile. A module that the driver does not compile is
 * quarantined until the device is closed. */
void gpu_pipelines_begin(ful_device *device);
ful_result gpu_pipelines_end(ful_device *device, ful_progress_fn progress, void *progress_ctx);

/* ---- trust: what self-tests found about modules; the ops test (ops/selftest.h). Any thread. ----
 */
typedef enum gpu_trust {
    GPU_TRUST_UNKNOWN = 0,
    GPU_TRUST_PASSED = 1,
    GPU_TRUST_NO_TEST = 2, /* no test reaches it */
    GPU_TRUST_TESTING = 3, /* stored so before it first runs: found again, the process did not live
                            * to see its end */
    /* quarantined: */
    GPU_TRUST_WRONG = 4,
    GPU_TRUST_LOST = 5,
    GPU_TRUST_CRASHED = 6,
    GPU_TRUST_REFUSED = 7, /* by the driver's compiler */
    GPU_TRUST_HIDDEN = 8   /* by gpu_family_hide; set by nothing else */
} gpu_trust;
bool gpu_trust_quarantined(gpu_trust trust);
const char *gpu_trust_text(gpu_trust trust); /* "gave a wrong result in the self-test" */
gpu_trust gpu_module_trust(const ful_device *device, const char *module);
void gpu_module_set_trust(ful_device *device, const char *module, gpu_trust trust);
/* A family is a module, or all that differ from each other in the type of the weights only: the
 * name without _f32, _f16, _bf16, _quant. */
void gpu_family_set_trust(ful_device *device, const char *family, gpu_trust trust);
/* The family of a module; ops choose families. */
void gpu_relatives_set_trust(ful_device *device, const char *module, gpu_trust trust);
/* Leaves a family out for now, whatever its verdict, and ends that for all. Nothing else may use
 * the device meanwhile. */
void gpu_family_hide(ful_device *device, const char *family);
void gpu_families_show(ful_device *device);
void gpu_trust_forget(ful_device *device); /* all verdicts */
/* gpu_module_usable for one of them. */
bool gpu_family_usable(const ful_device *device, const char *family);
/* Grows with every change of what is quarantined: plans made before may choose other kernels. */
uint32_t gpu_trust_changes(const ful_device *device);
/* Keeps the verdicts beside the pipeline cache, on the disk if it must outlive the machine's stop;
 * does nothing if the device was opened without. */
ful_result device_trust_store(ful_device *device, bool to_disk);
/* Must every note of a test be on the disk before it begins? Else one for all of them is enough. */
bool device_notes_to_disk(const ful_device *device);
/* The next module of unknown trust that a pipeline was noted of; *at begins at 0. */
bool gpu_pipeline_next_unknown(ful_device *device, uint32_t *at, const char **module);
/* False if the device was opened with FUL_SELFTEST_NEVER. */
bool device_tests_itself(const ful_device *device);

/* What FULGUR_FAULT says about a module's self-test. */
typedef enum gpu_fault {
    GPU_FAULT_NONE,
    GPU_FAULT_WRONG,
    GPU_FAULT_ONCE,  /* in one of the repetitions */
    GPU_FAULT_THIRD, /* in every third */
    GPU_FAULT_LOST
} gpu_fault;
gpu_fault gpu_module_fault(const ful_device *device, const char *module);
/* Called before a session's step is submitted: FUL_ERR_DEVICE_LOST, and the device is lost, if
 * FULGUR_FAULT names this step of the instance. */
ful_result gpu_step_fault(ful_device *device);

/* ---- commands ---- */
typedef struct gpu_commands gpu_commands;

typedef struct gpu_cost {
    double bytes; /* moved to and from device memory */
    double flops;
} gpu_cost;

typedef struct gpu_dispatch {
    gpu_pipeline *pipeline;
    gpu_range buffers[GPU_MAX_BUFFERS]; /* buffer_count of them; none empty */
    uint32_t writes;                    /* bit i: buffer i is written (only) ... */
    uint32_t updates;                   /* ... or read and written */
    gpu_range uniform;                  /* if the pipeline uses it */
    const void *push;
    uint32_t groups[3]; /* each within the device's limits (checked) */
    gpu_range indirect; /* if not empty: 3 words of group counts on the device instead of `groups`;
                         * `groups` then is the expected number, for the budget */
    gpu_cost cost;
    const char *label; /* static: op name */
    int32_t layer;     /* -1: none */
} gpu_dispatch;

typedef enum gpu_commands_flags {
    GPU_COMMANDS_REUSABLE = 1, /* may be submitted more than once */
    GPU_COMMANDS_TIMED = 2,    /* timestamps around every dispatch, if the device has them */
    GPU_COMMANDS_DRY =
        8, /* nothing is recorded and no buffer needs to exist; dispatches are checked and
            * pipelines asked for: how a schedule's pipelines are collected */
    GPU_COMMANDS_NO_BARRIER =
        4 /* tests only: place no barriers, to see that validation reports it */
} gpu_commands_flags;

ful_result gpu_commands_begin(ful_device *device, uint32_t flags, gpu_commands **out);
/* Errors are also kept: gpu_commands_end and gpu_commands_submit return the first one. */
ful_result gpu_commands_dispatch(gpu_commands *c, const gpu_dispatch *d);
ful_result gpu_commands_copy(gpu_commands *c, gpu_range src, gpu_range dst); /* dst.bytes bytes */
ful_result gpu_commands_fill(gpu_commands *c, gpu_range dst, uint32_t word);
ful_result gpu_commands_end(gpu_commands *c);
uint32_t gpu_commands_dispatches(const gpu_commands *c);
/* GPU_COMMANDS_DRY: the module of dispatch i. */
const char *gpu_commands_module(const gpu_commands *c, uint32_t i);
uint32_t gpu_commands_submits(const gpu_commands *c);
/* Submits everything recorded; returns at once (the built-in device: once it is done). The previous
 * submission of `c` must have been waited for. */
ful_result gpu_commands_submit(gpu_commands *c);
/* Waits for the last submission, each of its parts at most the device's wait_timeout.
 * FUL_ERR_DEVICE_LOST names the first step of the part that did not return. All device writes are
 * then visible to the host (call gpu_buffer_invalidate for non-coherent memory). */
ful_result gpu_commands_wait(gpu_commands *c);
void gpu_commands_destroy(gpu_commands **c); /* waits if needed */

/* After a wait: from the first step's begin to the last one's end, summed over the submissions; 0
 * without timestamps. Costs nothing beyond what every submission does. */
uint64_t gpu_commands_span_ns(const gpu_commands *c);

typedef struct gpu_time {
    const char *label;
    int32_t layer;
    uint64_t ns;
    gpu_cost cost;
} gpu_time;
/* GPU_COMMANDS_TIMED, after a wait: one entry a dispatch; *count = 0 if there are no timestamps.
 * Owned by c. */
ful_result gpu_commands_times(gpu_commands *c, const gpu_time **out, uint32_t *count);

#endif
