/* What the files of this room share. */
#ifndef FULGUR_GPU_GPU_INTERNAL_H
#define FULGUR_GPU_GPU_INTERNAL_H

#include <stdatomic.h>

#include "cpu/cpu.h"
#include "gpu/gpu.h"

/* ---- instance.c ---- */
struct ful_instance {
    ful_alloc alloc;
    log_sink log;
    VkInstance vk; /* VK_NULL_HANDLE without a loader */
    uint32_t api_version;
    /* Instance extensions for devices of Vulkan 1.0: asking more of them, and their identity. */
    bool properties2, device_ids;
    bool debug_names;
    PFN_vkSetDebugUtilsObjectNameEXT set_name; /* NULL: no names */
    VkDebugUtilsMessengerEXT messenger;
    PFN_vkDestroyDebugUtilsMessengerEXT destroy_messenger;
    _Atomic uint64_t validation_errors;
    _Atomic uint64_t fault_steps; /* of sessions, counted under FULGUR_FAULT */
};

/* Text of a VkResult: "VK_ERROR_DEVICE_LOST", or "VkResult" for rare ones. */
const char *vk_result_name(VkResult result);

/* ---- caps.c: pure functions on ful_caps ---- */
/* Takes away what `text` says ("-fp16,shared=16384") from a device of this kind. FUL_ERR_ARGUMENT
 * names the word; `source` says where the text came from. *caps is untouched then. */
ful_result caps_apply(const char *text, const char *source, ful_device_kind kind, ful_caps *caps);
/* Takes away feature bits and what depends on them. */
void caps_remove(uint32_t features, ful_caps *caps);
/* False if below the floor; then why[0..bytes) says which limit falls short. `raw` is the device
 * before masking: binding and allocation sizes are judged there, so that tests can shrink them. */
bool caps_meet_floor(const ful_caps *caps, const ful_caps *raw, char *why, size_t bytes);
/* True if the device has every word of a module's needs ("fp16 storage16 buffers6"); else *word and
 * *word_bytes tell the first missing or unknown one. */
bool caps_meet_needs(const ful_caps *caps, const char *needs, const char **word,
                     size_t *word_bytes);
/* Known driver faults: takes away what can't be trusted. */
typedef struct caps_identity {
    uint32_t vendor_id, device_id;
    VkDriverId driver;
} caps_identity;
void caps_distrust(const caps_identity *id, ful_caps *caps);

/* ---- matrix.c ---- */
/* Notes a shape of f16 x f16 -> f32 at subgroup scope: sorted, each once, unknown ones left out. */
void caps_add_matrix(ful_caps *caps, ful_matrix_shape shape);
void caps_add_flexible(ful_caps *caps, const ful_matrix_grain *grain);
/* Once all shapes are noted: the subgroup size to require, and no coopmat without a known shape or
 * where a subgroup's size can't be relied on. */
void caps_settle_matrices(uint32_t vendor_id, ful_caps *caps);
/* Leaves this shape alone; no coopmat without it. A CPU device gets it even if it does not list it
 * (its driver makes loops of any shape), so that tests can run what GPUs have. */
void caps_hold_matrix(ful_device_kind kind, ful_matrix_shape shape, ful_caps *caps);
/* Asks the device for both lists. */
void matrices_read(VkInstance instance, VkPhysicalDevice physical, uint32_t vendor_id,
                   ful_caps *caps);

/* ---- device.c ---- */
/* Everything read from a physical device. */
typedef struct device_facts {
    VkPhysicalDevice physical; /* NULL: the built-in device */
    uint32_t threads;          /* of the built-in device */
    ful_device_info info;      /* caps after FULGUR_CAPS */
    ful_caps raw;              /* as the driver reports */
    VkPhysicalDeviceMemoryProperties memory;
    uint8_t driver_uuid[VK_UUID_SIZE];
    uint8_t cache_uuid[VK_UUID_SIZE];
    uint32_t api_version; /* usable one */
    uint32_t queue_family;
    uint32_t timestamp_bits;
    uint32_t max_allocations;
} device_facts;

/* ---- builtin.c ---- */
/* True for "cpu" in any case; NULL allowed. */
bool device_named_built_in(const char *name);
/* Fills *facts for the built-in device; reads FULGUR_CAPS and, where threads is 0, FULGUR_THREADS.
 */
ful_result builtin_facts_read(uint32_t index, uint32_t threads, device_facts *facts);

/* Fills *facts; reads FULGUR_CAPS. */
ful_result facts_read(const ful_instance *instance, VkPhysicalDevice physical, uint32_t index,
                      device_facts *facts);
/* Creates facts->physical's VkDevice with exactly the features that `caps` shows. */
VkResult facts_create_device(const device_facts *facts, const ful_caps *caps, VkDevice *out);

typedef struct pipeline_layout {
    uint32_t buffer_count, push_bytes;
    bool uniform;
    VkDescriptorSetLayout set;
    VkPipelineLayout vk;
} pipeline_layout;

struct ful_device {
    ful_instance *instance;
    ful_alloc alloc;
    ful_device_info info;
    device_facts facts;
    VkDevice vk;
    struct VolkDeviceTable fn;
    VkQueue queue;
    mutex *queue_lock;

    uint32_t max_submit_ms, max_dispatch_ms, wait_timeout_ms;
    _Atomic int lost;     /* 1: every later call fails */
    _Atomic int released; /* of a lost device: 0 unknown, 1 its work has ended, 2 it never did */
    VkFence idle_fence;   /* behind all work, submitted when a wait timed out; under queue_lock */
    _Atomic uint64_t rate_bits;        /* double: measured speed relative to the first guess */
    double bytes_per_ns, flops_per_ns; /* first guess by kind */

    mutex *memory_lock;
    uint64_t memory_limit_bytes; /* of device-local memory; UINT64_MAX = none */
    uint64_t memory_now_bytes, memory_peak_bytes;
    uint32_t allocations;

    mutex *pipeline_lock;
    pipeline_layout **layouts;
    size_t layout_count, layout_capacity;
    gpu_pipeline **pipelines;
    size_t pipeline_count, pipeline_capacity;
    uint32_t batch_depth;
    uint32_t compiled; /* pipelines compiled since opening */
    VkPipelineCache cache;
    size_t cache_loaded_bytes;
    char *cache_folder; /* NULL: none */
    uint32_t choices[DEVICE_CHOICES];
    atomic_uchar *trust, *hidden; /* gpu_trust, and whether left out, by shader_modules[] */
    _Atomic uint32_t trust_changes;
    VkDevice processor; /* threads of ops without a trusted kernel; NULL: none so far */
    bool tests_itself;
    bool notes_to_disk; /* every note of a test, before it begins */
    char *fault;        /* FULGUR_FAULT, or NULL */
    ful_cache_get_fn cache_get;
    ful_cache_set_fn cache_set;
    void *cache_ctx;
};

/* FUL_ERR_DEVICE_LOST if the device was lost before. */
ful_result device_alive(const ful_device *device);
ful_result vk_result_code(VkResult result);
/* The error of a failed Vulkan call; marks the device lost if it says so. */
ful_result vk_fail(ful_device *device, VkResult result, const char *what);
/* Notes that a wait timed out and puts a fence behind everything submitted. */
void device_mark_timeout(ful_device *device);
/* True if objects may be destroyed: the device is well, or its work has ended. On a lost device
 * this waits once for a few seconds; false means that Vulkan objects must be left alone. */
bool device_releasable(ful_device *device);
void device_name_object(const ful_device *device, VkObjectType type, uint64_t handle,
                        const char *name);

/* ---- memory.c ---- */
/* Allocates, binds and maps memory for b->vk; b->bytes and b->name are set. */
ful_result memory_allocate(ful_device *device, gpu_memory kind, gpu_buffer *b);
void memory_free(ful_device *device, gpu_buffer *b);
/* True if the host may read through b->mapped at full speed. */
bool memory_reads_fast(const ful_device *device, const gpu_buffer *b);
/* Indices of the memory types to try, best first; returns how many. allowed_types: a bit for each.
 */
uint32_t memory_rank(const VkPhysicalDeviceMemoryProperties *m, bool unified, gpu_memory kind,
                     uint64_t bytes, uint32_t allowed_types, uint32_t out[VK_MAX_MEMORY_TYPES]);
/* True if host and device share their memory. A discrete GPU with a resizable BAR shows the same
 * heaps, but host reads of them cross the bus. */
bool memory_is_unified(const VkPhysicalDeviceMemoryProperties *m, ful_device_kind kind);
uint64_t memory_local_bytes(const VkPhysicalDeviceMemoryProperties *m, bool visible_only);

/* ---- pipeline.c ---- */
struct gpu_pipeline {
    gpu_pipeline_desc desc;
    const char *name;
    const uint32_t *code;
    size_t code_bytes;
    uint32_t subgroup_size; /* required; 0: the driver's choice */
    bool full_subgroups;
    uint64_t hash;
    const pipeline_layout *layout;
    bool on_processor;     /* code is a cpu_kernel, vk stays VK_NULL_HANDLE */
    VkPipeline vk;         /* VK_NULL_HANDLE until compiled */
    _Atomic bool seasoned; /* a finished submission held it: drivers may compile in the first */
};

/* As gpu_pipeline_get with SPIR-V of the caller's own, which must outlive the device; no bytes: for
 * the processor. */
ful_result gpu_pipeline_from_words(ful_device *device, const gpu_pipeline_desc *desc,
                                   const uint32_t *words, size_t bytes, const char *needs,
                                   gpu_pipeline **out);
/* Compiles it if that has not happened. */
ful_result pipeline_ready(ful_device *device, gpu_pipeline *pipeline);
void pipelines_destroy(ful_device *device, bool releasable);

/* ---- processor.c ---- */
/* True if a C kernel can take the place of the module on this device. */
bool processor_serves(const ful_device *device, const char *module);
ful_result processor_pipeline(ful_device *device, const gpu_pipeline_desc *desc,
                              gpu_pipeline **out);
typedef struct processor_step {
    gpu_dispatch dispatch; /* but for what it points to: */
    gpu_buffer buffers[GPU_MAX_BUFFERS], uniform, indirect;
    uint64_t push[CPU_PUSH_BYTES / 8];
    uint64_t ns; /* that it took last */
} processor_step;
/* FUL_ERR_SELFTEST if the processor can't reach a buffer. */
ful_result processor_step_make(const gpu_dispatch *d, processor_step *step);
/* The device must be done with what came before. */
ful_result processor_run(ful_device *device, processor_step *step);

/* ---- cache.c ---- */
enum { CACHE_HEADER_BYTES = 112 };
/* Creates device->cache, filled from the folder or the callbacks. Never fails for bad content. */
ful_result cache_open(ful_device *device, const ful_device_params *params);
/* Stores it if it grew. */
void cache_close(ful_device *device, bool releasable);
/* What cache_verdicts_store kept: from mem_alloc, or NULL; *damaged if there is something else. */
uint8_t *cache_verdicts_load(const ful_device *device, size_t *bytes, bool *damaged);
/* Does nothing without a cache. */
ful_result cache_verdicts_store(const ful_device *device, const uint8_t *payload, size_t bytes,
                                bool to_disk);
/* FNV-1a, 64 bits. */
uint64_t hash_bytes(uint64_t seed, const void *data, size_t bytes);
#define HASH_SEED 14695981039346656037u

/* ---- trust.c ---- */
/* Behind cache_open. FUL_ERR_ARGUMENT if FULGUR_FAULT can't be read. */
ful_result trust_open(ful_device *device);
void trust_close(ful_device *device);

/* ---- command.c ---- */
/* Barriers placed between steps (would be placed, with GPU_COMMANDS_NO_BARRIER). */
uint32_t commands_barriers(const gpu_commands *c);

/* ---- timer.c ---- */
/* Nanoseconds that a dispatch of this cost is expected to take. */
double timer_estimate_ns(const ful_device *device, const gpu_cost *cost);
/* Refines the estimate by a finished submission. */
void timer_learn(ful_device *device, double estimated_ns, double measured_ns);
/* Difference of two raw timestamps in nanoseconds. */
uint64_t timer_delta_ns(const ful_device *device, uint64_t from, uint64_t to);

#endif
