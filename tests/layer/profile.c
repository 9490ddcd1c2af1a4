#include "profile.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROW(field, count, raises)                                                                  \
    {                                                                                              \
#field, offsetof(VkPhysicalDeviceLimits, field),                                           \
            sizeof(((VkPhysicalDeviceLimits *)0)->field) / (count), count, raises                  \
    }
const limit_row limit_rows[] = {
    ROW(maxComputeWorkGroupInvocations, 1, false),
    ROW(maxComputeWorkGroupSize, 3, false),
    ROW(maxComputeWorkGroupCount, 3, false),
    ROW(maxComputeSharedMemorySize, 1, false),
    ROW(maxStorageBufferRange, 1, false),
    ROW(maxUniformBufferRange, 1, false),
    ROW(maxPushConstantsSize, 1, false),
    ROW(maxPerStageDescriptorStorageBuffers, 1, false),
    ROW(maxPerStageDescriptorUniformBuffers, 1, false),
    ROW(maxDescriptorSetStorageBuffers, 1, false),
    ROW(maxPerStageResources, 1, false),
    ROW(maxBoundDescriptorSets, 1, false),
    ROW(maxMemoryAllocationCount, 1, false),
    ROW(minStorageBufferOffsetAlignment, 1, true),
    ROW(minUniformBufferOffsetAlignment, 1, true),
    ROW(nonCoherentAtomSize, 1, true),
};
const size_t limit_row_count = sizeof(limit_rows) / sizeof(limit_rows[0]);

typedef struct flag_name {
    const char *name;
    uint32_t bit;
} flag_name;

static const flag_name subgroup_names[] = {
    {"none", 0},
    {"basic", VK_SUBGROUP_FEATURE_BASIC_BIT},
    {"vote", VK_SUBGROUP_FEATURE_VOTE_BIT},
    {"arithmetic", VK_SUBGROUP_FEATURE_ARITHMETIC_BIT},
    {"ballot", VK_SUBGROUP_FEATURE_BALLOT_BIT},
    {"shuffle", VK_SUBGROUP_FEATURE_SHUFFLE_BIT},
    {"shuffle_relative", VK_SUBGROUP_FEATURE_SHUFFLE_RELATIVE_BIT},
    {"quad", VK_SUBGROUP_FEATURE_QUAD_BIT},
    {NULL, 0},
};
static const flag_name memory_names[] = {
    {"local", VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT},
    {"visible", VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT},
    {"coherent", VK_MEMORY_PROPERTY_HOST_COHERENT_BIT},
    {"cached", VK_MEMORY_PROPERTY_HOST_CACHED_BIT},
    {"lazy", VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT},
    {NULL, 0},
};
static const flag_name queue_names[] = {
    {"graphics", VK_QUEUE_GRAPHICS_BIT},
    {"compute", VK_QUEUE_COMPUTE_BIT},
    {"transfer", VK_QUEUE_TRANSFER_BIT},
    {"sparse", VK_QUEUE_SPARSE_BINDING_BIT},
    {NULL, 0},
};
static const flag_name type_names[] = {
    {"other", VK_PHYSICAL_DEVICE_TYPE_OTHER},
    {"integrated", VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU},
    {"discrete", VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU},
    {"virtual", VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU},
    {"cpu", VK_PHYSICAL_DEVICE_TYPE_CPU},
    {NULL, 0},
};

bool words_hold(const char *text, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = text; *p; p += strcspn(p, " ")) {
        p += strspn(p, " ");
        if (n > 0 && strcspn(p, " ") == n && memcmp(p, word, n) == 0)
            return true;
    }
    return false;
}

static bool flag_find(const flag_name *names, const char *word, uint32_t *bit)
{
    for (; names->name; names++)
        if (strcmp(names->name, word) == 0) {
            *bit = names->bit;
            return true;
        }
    return false;
}

/* 128, 0x20, 16KiB, 1GiB, 1GiB-4. */
static bool size_parse(const char *word, uint64_t *out)
{
    char *end;
    if (*word < '0' || *word > '9')
        return false;
    *out = strtoull(word, &end, 0);
    if (strncmp(end, "KiB", 3) == 0 || strncmp(end, "MiB", 3) == 0 || strncmp(end, "GiB", 3) == 0) {
        *out <<= *end == 'K' ? 10 : *end == 'M' ? 20 : 30;
        end += 3;
    }
    if (*end == '-')
        *out -= strtoull(end + 1, &end, 0);
    return *end == 0;
}

static bool words_append(char *text, const char *value)
{
    size_t used = strlen(text);
    if (used + strlen(value) + 2 > PROFILE_TEXT)
        return false;
    snprintf(text + used, PROFILE_TEXT - used, " %s", value);
    return true;
}

/* The flags of the words, all of which must be known. */
static bool flags_parse(const flag_name *names, char *value, uint32_t *flags)
{
    *flags = 0;
    for (char *word = strtok(value, " "); word; word = strtok(NULL, " ")) {
        uint32_t bit;
        if (!flag_find(names, word, &bit))
            return false;
        *flags |= bit;
    }
    return true;
}

/* "1GiB local", with "budget=512MiB" if less of it is free. */
static bool heap_parse(profile *p, char *value)
{
    if (p->heap_count == VK_MAX_MEMORY_HEAPS)
        return false;
    VkMemoryHeap *heap = &p->heaps[p->heap_count];
    char *word = strtok(value, " ");
    if (!word || !size_parse(word, &heap->size))
        return false;
    p->budget[p->heap_count] = heap->size;
    while ((word = strtok(NULL, " ")) != NULL) {
        if (strcmp(word, "local") == 0)
            heap->flags |= VK_MEMORY_HEAP_DEVICE_LOCAL_BIT;
        else if (strncmp(word, "budget=", 7) != 0 ||
                 !size_parse(word + 7, &p->budget[p->heap_count]))
            return false;
    }
    p->heap_count++;
    return true;
}

/* "0 local visible": a type of the heap before it in the list with that number. */
static bool type_parse(profile *p, char *value)
{
    uint64_t heap;
    char *rest = strchr(value, ' ');
    if (rest)
        *rest++ = 0;
    if (p->type_count == VK_MAX_MEMORY_TYPES || !size_parse(value, &heap) || heap >= p->heap_count)
        return false;
    VkMemoryType *type = &p->types[p->type_count++];
    type->heapIndex = (uint32_t)heap;
    return !rest || flags_parse(memory_names, rest, &type->propertyFlags);
}

/* "1 36 compute transfer": queues, valid bits of timestamps, flags. */
static bool family_parse(profile *p, char *value)
{
    uint64_t queues, bits;
    char *count = strtok(value, " "), *valid = strtok(NULL, " "), *rest = strtok(NULL, "");
    if (p->family_count == PROFILE_FAMILIES || !rest || !size_parse(count, &queues) ||
        !size_parse(valid, &bits))
        return false;
    VkQueueFamilyProperties *f = &p->families[p->family_count++];
    f->queueCount = (uint32_t)queues;
    f->timestampValidBits = (uint32_t)bits;
    f->minImageTransferGranularity = (VkExtent3D){1, 1, 1};
    return flags_parse(queue_names, rest, &f->queueFlags);
}

static bool features_parse(char *text, const char *value)
{
    char copy[PROFILE_TEXT];
    snprintf(copy, sizeof(copy), "%s", value);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        if (!feature_known(word))
            return false;
    return words_append(text, value);
}

static bool limit_parse(profile *p, const char *key, char *value)
{
    for (size_t i = 0; i < limit_row_count; i++) {
        if (strcmp(limit_rows[i].name, key) != 0)
            continue;
        if (p->limit_count == PROFILE_LIMITS)
            return false;
        profile_limit *l = &p->limits[p->limit_count++];
        l->row = &limit_rows[i];
        char *word = strtok(value, " ");
        for (uint32_t j = 0; j < l->row->count; j++, word = strtok(NULL, " "))
            if (!word || !size_parse(word, &l->value[j]))
                return false;
        return word == NULL;
    }
    return false;
}

static bool line_parse(profile *p, const char *key, char *value)
{
    uint64_t number = 0;
    uint32_t bit;
    bool is_number = size_parse(value, &number);
    if (strcmp(key, "api") == 0) {
        unsigned major, minor;
        if (sscanf(value, "%u.%u", &major, &minor) != 2)
            return false;
        p->api_version = VK_MAKE_API_VERSION(0, major, minor, 0);
    } else if (strcmp(key, "deviceType") == 0) {
        if (!flag_find(type_names, value, &bit))
            return false;
        p->device_type = (int32_t)bit;
    } else if (strcmp(key, "driverID") == 0) {
        p->driver_id = (uint32_t)number;
        return is_number;
    } else if (strcmp(key, "vendorID") == 0) {
        p->vendor_id = (uint32_t)number;
        return is_number;
    } else if (strcmp(key, "extensions") == 0) {
        p->lists_extensions = true;
        return words_append(p->extensions, value);
    } else if (strcmp(key, "hide") == 0) {
        return words_append(p->hide, value);
    } else if (strcmp(key, "features") == 0) {
        p->lists_features = true;
        return features_parse(p->features, value);
    } else if (strcmp(key, "off") == 0) {
        return features_parse(p->off, value);
    } else if (strcmp(key, "maxMemoryAllocationSize") == 0) {
        p->allocation_bytes = number;
        return is_number;
    } else if (strcmp(key, "maxBufferSize") == 0) {
        p->buffer_bytes = number;
        return is_number;
    } else if (strcmp(key, "subgroupSize") == 0) {
        /* How many lanes there are is not for a layer to say, but one lane can stand for them. */
        p->subgroup_size = (uint32_t)number;
        return is_number && number == 1;
    } else if (strcmp(key, "subgroupOperations") == 0) {
        p->masks_subgroup = true;
        return flags_parse(subgroup_names, value, &p->subgroup_operations);
    } else if (strcmp(key, "timestampValidBits") == 0) {
        p->timestamp_bits = (int32_t)number;
        return is_number && number <= 64;
    } else if (strcmp(key, "timestampPeriod") == 0) {
        p->timestamp_period = strtod(value, NULL);
        return p->timestamp_period > 0.0;
    } else if (strcmp(key, "heap") == 0) {
        return heap_parse(p, value);
    } else if (strcmp(key, "type") == 0) {
        return type_parse(p, value);
    } else if (strcmp(key, "family") == 0) {
        return family_parse(p, value);
    } else {
        return limit_parse(p, key, value);
    }
    return true;
}

/* Cuts blanks and comments off both ends. */
static char *trim(char *text)
{
    text[strcspn(text, "#\r\n")] = 0;
    text += strspn(text, " \t");
    for (size_t n = strlen(text); n > 0 && (text[n - 1] == ' ' || text[n - 1] == '\t'); n--)
        text[n - 1] = 0;
    return text;
}

bool profile_read(const char *path, const char *name, profile *out)
{
    char line[1024];
    bool inside = false, found = false, ok = true;
    int number = 0;
    memset(out, 0, sizeof(*out));
    snprintf(out->name, sizeof(out->name), "%s", name);
    out->device_type = out->timestamp_bits = -1;
    FILE *in = fopen(path, "r");
    while (ok && in && fgets(line, sizeof(line), in)) {
        char *text = trim(line);
        number++;
        if (*text == '[') {
            text[strcspn(text, "]")] = 0;
            inside = strcmp(text + 1, name) == 0;
            found = found || inside;
        } else if (inside && *text) {
            char *value = strchr(text, '=');
            if (value) {
                *value++ = 0;
                ok = line_parse(out, trim(text), trim(value));
            } else {
                ok = false;
            }
        }
    }
    if (in)
        fclose(in);
    if (!ok)
        fprintf(stderr, "restrict layer: %s:%d can't be read\n", path, number);
    else if (!found)
        fprintf(stderr, "restrict layer: no profile \"%s\" in %s\n", name, path);
    return ok && found;
}
