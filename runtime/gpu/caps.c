/* What a device can do, and taking it away. Nothing here talks to Vulkan. */
#include <stdio.h>
#include <string.h>

#include "gpu/gpu_internal.h"

static const struct feature_name {
    uint32_t bit;
    const char *name;
} feature_names[] = {
    {FUL_FEATURE_SUBGROUP, "subgroup"},
    {FUL_FEATURE_FP16, "fp16"},
    {FUL_FEATURE_INT8, "int8"},
    {FUL_FEATURE_STORAGE16, "storage16"},
    {FUL_FEATURE_STORAGE8, "storage8"},
    {FUL_FEATURE_INT_DOT, "intdot"},
    {FUL_FEATURE_COOPMAT, "coopmat"},
    {FUL_FEATURE_COOPMAT2, "coopmat2"},
    {FUL_FEATURE_BUFFER_ADDRESS, "address"},
    {FUL_FEATURE_TIMELINE, "timeline"},
    {FUL_FEATURE_TIMESTAMP, "timestamp"},
    {FUL_FEATURE_MEMORY_BUDGET, "budget"},
    {FUL_FEATURE_SUBGROUP_SIZE, "subgroupsize"},
    {FUL_FEATURE_PORTABILITY, "portability"},
};
enum { FEATURE_COUNT = sizeof(feature_names) / sizeof(feature_names[0]) };

typedef struct word {
    const char *text;
    size_t bytes;
} word;

static bool word_is(word w, const char *text)
{
    return strlen(text) == w.bytes && memcmp(w.text, text, w.bytes) == 0;
}

static uint32_t feature_bit(word w)
{
    for (int i = 0; i < FEATURE_COUNT; i++)
        if (word_is(w, feature_names[i].name))
            return feature_names[i].bit;
    return 0;
}

const char *ful_feature_name(uint32_t feature)
{
    for (int i = 0; i < FEATURE_COUNT; i++)
        if (feature_names[i].bit == feature)
            return feature_names[i].name;
    return NULL;
}

const char *ful_device_kind_name(ful_device_kind kind)
{
    switch (kind) {
    case FUL_DEVICE_INTEGRATED:
        return "integrated GPU";
    case FUL_DEVICE_DISCRETE:
        return "discrete GPU";
    case FUL_DEVICE_VIRTUAL:
        return "virtual GPU";
    case FUL_DEVICE_CPU:
        return "CPU";
    case FUL_DEVICE_OTHER:
        break;
    }
    return "other device";
}

static bool number_parse(word w, uint64_t *out)
{
    uint64_t v = 0;
    if (w.bytes == 0)
        return false;
    for (size_t i = 0; i < w.bytes; i++) {
        unsigned digit = (unsigned)(unsigned char)w.text[i] - '0';
        if (digit > 9 || v > (UINT64_MAX - digit) / 10)
            return false;
        v = v * 10 + digit;
    }
    *out = v;
    return true;
}

static void limit32(uint32_t *v, uint64_t limit)
{
    if (*v > limit)
        *v = (uint32_t)limit;
}

static void limit64(uint64_t *v, uint64_t limit)
{
    if (*v > limit)
        *v = limit;
}

void caps_remove(uint32_t features, ful_caps *caps)
{
    caps->features &= ~features;
    /* Vulkan 1.0 takes SPIR-V 1.0, which only the kernels that need no feature are. */
    if (caps->api_version < VK_API_VERSION_1_1)
        caps->features &= FUL_FEATURE_TIMESTAMP | FUL_FEATURE_PORTABILITY;
    /* Cooperative matrices and fixed subgroup sizes mean nothing without subgroups. */
    if (!(caps->features & FUL_FEATURE_SUBGROUP)) {
        caps->features &= ~(uint32_t)(FUL_FEATURE_COOPMAT | FUL_FEATURE_SUBGROUP_SIZE);
        caps->subgroup_size = caps->subgroup_min = caps->subgroup_max = 1;
    }
    if (!(caps->features & FUL_FEATURE_COOPMAT)) {
        caps->features &= ~(uint32_t)FUL_FEATURE_COOPMAT2;
        caps->matrix_count = caps->matrix_subgroup = 0;
        memset(caps->matrix, 0, sizeof(caps->matrix));
    }
    if (!(caps->features & FUL_FEATURE_COOPMAT2)) {
        caps->flexible_count = caps->flexible_dimension = caps->flexible_workgroup = 0;
        caps->flexible_shared_bytes = 0;
        memset(caps->flexible, 0, sizeof(caps->flexible));
    }
    if (!(caps->features & FUL_FEATURE_TIMESTAMP))
        caps->timestamp_period_ns = 0;
}

/* A size that the device can't be held to leaves no subgroups at all. */
static void limit_subgroup(ful_caps *caps, uint64_t size)
{
    bool fixed = caps->subgroup_size == size && (caps->subgroup_min == caps->subgroup_max);
    bool selectable = (caps->features & FUL_FEATURE_SUBGROUP_SIZE) && size >= caps->subgroup_min &&
                      size <= caps->subgroup_max && (size & (size - 1)) == 0;
    if (size > 1 && (fixed || selectable))
        caps->subgroup_size = caps->subgroup_min = caps->subgroup_max = (uint32_t)size;
    else
        caps_remove(FUL_FEATURE_SUBGROUP, caps);
    if (caps->matrix_count > 0 && caps->matrix_subgroup != size)
        caps_remove(FUL_FEATURE_COOPMAT, caps);
}

static bool limit_apply(word key, uint64_t v, ful_caps *caps)
{
    if (word_is(key, "shared")) {
        limit32(&caps->shared_bytes, v);
    } else if (word_is(key, "workgroup")) {
        limit32(&caps->workgroup_invocations, v);
        for (int i = 0; i < 3; i++)
            limit32(&caps->workgroup_size[i], v);
    } else if (word_is(key, "buffers")) {
        limit32(&caps->storage_buffers, v);
    } else if (word_is(key, "range")) {
        limit64(&caps->storage_range_bytes, v);
    } else if (word_is(key, "allocation")) {
        limit64(&caps->allocation_bytes, v);
    } else if (word_is(key, "push")) {
        limit32(&caps->push_bytes, v);
    } else if (word_is(key, "subgroup_size")) {
        limit_subgroup(caps, v);
    } else if (word_is(key, "unified")) {
        caps->unified_memory = caps->unified_memory && v != 0;
    } else if (word_is(key, "memory")) {
        limit64(&caps->device_memory_bytes, v);
        limit64(&caps->host_visible_local_bytes, v);
    } else {
        return false;
    }
    return true;
}

/* "16x8x16" */
static bool shape_parse(word w, ful_matrix_shape *out)
{
    uint64_t sizes[3];
    for (int i = 0; i < 3; i++) {
        const char *x = i < 2 ? memchr(w.text, 'x', w.bytes) : w.text + w.bytes;
        if (!x)
            return false;
        word size = {w.text, (size_t)(x - w.text)};
        if (!number_parse(size, &sizes[i]) || sizes[i] > UINT32_MAX)
            return false;
        if (i < 2) {
            w.bytes -= size.bytes + 1;
            w.text = x + 1;
        }
    }
    *out = (ful_matrix_shape){(uint32_t)sizes[0], (uint32_t)sizes[1], (uint32_t)sizes[2]};
    return true;
}

static ful_result word_apply(word w, const char *source, ful_device_kind kind, ful_caps *caps)
{
    int bytes = w.bytes > 60 ? 60 : (int)w.bytes;
    if (w.text[0] == '-') {
        word name = {w.text + 1, w.bytes - 1};
        uint32_t bit = feature_bit(name);
        if (!bit)
            return fail(FUL_ERR_ARGUMENT, "%s: unknown feature in \"%.*s\"", source, bytes, w.text);
        caps_remove(bit, caps);
        return FUL_OK;
    }
    const char *equals = memchr(w.text, '=', w.bytes);
    if (!equals)
        return fail(FUL_ERR_ARGUMENT, "%s: \"%.*s\" is neither \"-feature\" nor \"limit=number\"",
                    source, bytes, w.text);
    word key = {w.text, (size_t)(equals - w.text)};
    word value = {equals + 1, w.bytes - key.bytes - 1};
    uint64_t v;
    ful_matrix_shape shape;
    if (word_is(key, "matrix")) {
        if (!shape_parse(value, &shape))
            return fail(FUL_ERR_ARGUMENT, "%s: \"%.*s\" has no shape MxNxK after \"=\"", source,
                        bytes, w.text);
        caps_hold_matrix(kind, shape, caps);
        return FUL_OK;
    }
    if (!number_parse(value, &v))
        return fail(FUL_ERR_ARGUMENT, "%s: \"%.*s\" has no whole number after \"=\"", source, bytes,
                    w.text);
    if (!limit_apply(key, v, caps))
        return fail(FUL_ERR_ARGUMENT, "%s: unknown limit in \"%.*s\"", source, bytes, w.text);
    return FUL_OK;
}

/* Next word of a list separated by commas or blanks; false at the end. */
static bool word_next(const char **text, word *w)
{
    const char *p = *text;
    p += strspn(p, ", \t\r\n");
    w->text = p;
    w->bytes = strcspn(p, ", \t\r\n");
    *text = p + w->bytes;
    return w->bytes > 0;
}

ful_result caps_apply(const char *text, const char *source, ful_device_kind kind, ful_caps *caps)
{
    ful_caps c = *caps;
    word w;
    while (text && word_next(&text, &w))
        TRY(word_apply(w, source, kind, &c));
    *caps = c;
    return FUL_OK;
}

bool caps_meet_floor(const ful_caps *caps, const ful_caps *raw, char *why, size_t bytes)
{
    const struct {
        const char *what;
        uint64_t have, need;
    } least[] = {
        {"storage buffers per stage", caps->storage_buffers, 4},
        {"invocations per workgroup", caps->workgroup_invocations, 128},
        {"workgroup size in x", caps->workgroup_size[0], 128},
        {"workgroup count in x", caps->workgroup_count[0], 65535},
        {"bytes of shared memory", caps->shared_bytes, 16384},
        {"bytes of push constants", caps->push_bytes, 128},
        {"bytes in a storage binding", raw->storage_range_bytes, 128u << 20},
        {"bytes in an allocation", raw->allocation_bytes, 128u << 20},
        {"bytes in a storage binding", caps->storage_range_bytes, 64u << 10},
        {"bytes in an allocation", caps->allocation_bytes, 64u << 10},
        {"bytes in a uniform binding", caps->uniform_range_bytes, 16384},
    };
    why[0] = 0;
    for (size_t i = 0; i < sizeof(least) / sizeof(least[0]); i++) {
        if (least[i].have >= least[i].need)
            continue;
        snprintf(why, bytes, "%s: has %llu, needs %llu", least[i].what,
                 (unsigned long long)least[i].have, (unsigned long long)least[i].need);
        return false;
    }
    if (caps->storage_align_bytes > 256 || caps->uniform_align_bytes > 256) {
        snprintf(why, bytes, "descriptor offset alignment: has %u, needs at most 256",
                 (unsigned)(caps->storage_align_bytes > caps->uniform_align_bytes
                                ? caps->storage_align_bytes
                                : caps->uniform_align_bytes));
        return false;
    }
    return true;
}

/* "buffers6" with prefix "buffers" gives 6. */
static bool numbered_word(word w, const char *prefix, uint64_t *v)
{
    size_t n = strlen(prefix);
    word number = {w.text + n, w.bytes - n};
    return w.bytes > n && memcmp(w.text, prefix, n) == 0 && number_parse(number, v);
}

static bool need_met(word w, const ful_caps *caps)
{
    uint64_t v;
    uint32_t bit = feature_bit(w);
    if (bit)
        return (caps->features & bit) != 0;
    if (numbered_word(w, "buffers", &v))
        return caps->storage_buffers >= v;
    if (numbered_word(w, "shared", &v))
        return caps->shared_bytes / 1024 >= v;
    if (numbered_word(w, "workgroup", &v))
        return caps->workgroup_invocations >= v && caps->workgroup_size[0] >= v;
    if (numbered_word(w, "push", &v))
        return caps->push_bytes >= v;
    if (word_is(w, "vk12"))
        return caps->api_version >= VK_API_VERSION_1_2;
    if (word_is(w, "vk13"))
        return caps->api_version >= VK_API_VERSION_1_3;
    return word_is(w, "none") || word_is(w, "-");
}

bool caps_meet_needs(const ful_caps *caps, const char *needs, const char **missing,
                     size_t *missing_bytes)
{
    word w;
    while (needs && word_next(&needs, &w)) {
        if (need_met(w, caps))
            continue;
        if (missing)
            *missing = w.text;
        if (missing_bytes)
            *missing_bytes = w.bytes;
        return false;
    }
    return true;
}

void caps_distrust(const caps_identity *id, ful_caps *caps)
{
    enum { VENDOR_AMD = 0x1002, VENDOR_VIVANTE = 0x10002 };
    uint32_t off = 0;
    /* subgroupAdd after divergent code gives wrong sums there. */
    if (id->driver == VK_DRIVER_ID_QUALCOMM_PROPRIETARY)
        off |= FUL_FEATURE_SUBGROUP;
    /* Half arithmetic is wrong on old Adrenos, which are those without 16-bit storage. */
    if (id->driver == VK_DRIVER_ID_QUALCOMM_PROPRIETARY &&
        !(caps->features & FUL_FEATURE_STORAGE16))
        off |= FUL_FEATURE_FP16;
    /* Subgroup arithmetic and shuffles are broken on AMD through Metal. */
    if (id->driver == VK_DRIVER_ID_MOLTENVK && id->vendor_id == VENDOR_AMD)
        off |= FUL_FEATURE_SUBGROUP;
    if (id->vendor_id == VENDOR_VIVANTE)
        off |= FUL_FEATURE_STORAGE16;
    caps_remove(off, caps);
}
