/* fulgur devices: what Vulkan offers here, and the processor. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static void print_uuid(const uint8_t uuid[16])
{
    for (int i = 0; i < 16; i++)
        printf("%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

static void print_features(uint32_t features, const char *separator, const char *quote)
{
    const char *before = "";
    for (uint32_t bit = 1; bit; bit <<= 1) {
        const char *name = ful_feature_name(bit);
        if (!(features & bit) || !name)
            continue;
        printf("%s%s%s%s", before, quote, name, quote);
        before = separator;
    }
}

static void print_text(const ful_device_info *d)
{
    const ful_caps *c = &d->caps;
    printf("%u  %s (%s)%s%s\n", d->index, d->name, ful_device_kind_name(d->kind),
           d->usable ? "" : "  NOT USABLE: ", d->usable ? "" : d->why_not);
    printf("   driver     %s\n   uuid       ", d->driver);
    print_uuid(d->uuid);
    if (d->pci[0])
        printf("\n   pci        %s", d->pci);
    printf("\n   api        %u.%u.%u\n", c->api_version >> 22 & 127, c->api_version >> 12 & 1023,
           c->api_version & 4095);
    printf("   memory     %.0f MiB on the device, %.0f of it writable by the host%s\n",
           mib(c->device_memory_bytes), mib(c->host_visible_local_bytes),
           c->unified_memory ? " (unified)" : "");
    printf("   largest    binding %.0f MiB, allocation %.0f MiB\n", mib(c->storage_range_bytes),
           mib(c->allocation_bytes));
    printf("   workgroup  %u invocations, %u KiB shared, subgroups of %u", c->workgroup_invocations,
           c->shared_bytes / 1024, c->subgroup_size);
    if (c->subgroup_min != c->subgroup_max)
        printf(" (%u to %u)", c->subgroup_min, c->subgroup_max);
    printf(", %u storage buffers\n   features   ", c->storage_buffers);
    print_features(c->features, " ", "");
    printf("\n");
    if (c->matrix_count == 0)
        return;
    printf("   matrices  ");
    for (uint32_t i = 0; i < c->matrix_count; i++)
        printf(" %ux%ux%u", c->matrix[i].m, c->matrix[i].n, c->matrix[i].k);
    printf(" in subgroups of %u", c->matrix_subgroup);
    for (uint32_t i = 0; i < c->flexible_count; i++) {
        const ful_matrix_grain *g = &c->flexible[i];
        printf(", multiples of %ux%ux%u in ", g->m, g->n, g->k);
        if (g->workgroup)
            printf("workgroups of %u", g->invocations);
        else
            printf("subgroups");
    }
    printf("\n");
}

static void print_json(const ful_device_info *d)
{
    const ful_caps *c = &d->caps;
    printf("{\"index\": %u, \"name\": ", d->index);
    cli_print_json_string(d->name, strlen(d->name));
    printf(", \"kind\": \"%s\", \"driver\": ", ful_device_kind_name(d->kind));
    cli_print_json_string(d->driver, strlen(d->driver));
    printf(", \"uuid\": \"");
    print_uuid(d->uuid);
    printf("\", \"pci\": \"%s\", \"built_in\": %s, \"usable\": %s, \"why_not\": ", d->pci,
           d->built_in ? "true" : "false", d->usable ? "true" : "false");
    cli_print_json_string(d->why_not, strlen(d->why_not));
    printf(
        ", \"vendor_id\": %u, \"device_id\": %u, \"api_version\": %u, \"memory_bytes\": %llu, "
        "\"storage_range_bytes\": %llu, \"allocation_bytes\": %llu, \"workgroup_invocations\": %u, "
        "\"shared_bytes\": %u, \"subgroup_size\": %u, \"storage_buffers\": %u, \"features\": [",
        d->vendor_id, d->device_id, c->api_version, (unsigned long long)c->device_memory_bytes,
        (unsigned long long)c->storage_range_bytes, (unsigned long long)c->allocation_bytes,
        c->workgroup_invocations, c->shared_bytes, c->subgroup_size, c->storage_buffers);
    print_features(c->features, ", ", "\"");
    printf("], \"matrix_subgroup\": %u, \"matrices\": [", c->matrix_subgroup);
    for (uint32_t i = 0; i < c->matrix_count; i++)
        printf("%s[%u, %u, %u]", i ? ", " : "", c->matrix[i].m, c->matrix[i].n, c->matrix[i].k);
    printf("], \"flexible_matrices\": [");
    for (uint32_t i = 0; i < c->flexible_count; i++) {
        const ful_matrix_grain *g = &c->flexible[i];
        printf("%s{\"grain\": [%u, %u, %u], \"scope\": \"%s\", \"invocations\": %u}", i ? ", " : "",
               g->m, g->n, g->k, g->workgroup ? "workgroup" : "subgroup", g->invocations);
    }
    printf("]}");
}

static int list(ful_instance *instance, bool json)
{
    uint32_t n = 0;
    if (ful_device_list(instance, NULL, &n) != FUL_OK)
        return cli_fail("listing devices");
    ful_device_info *infos = calloc(n ? n : 1, sizeof *infos);
    if (!infos || ful_device_list(instance, infos, &n) != FUL_OK) {
        free(infos);
        return cli_fail("listing devices");
    }
    if (json)
        printf("[");
    for (uint32_t i = 0; i < n; i++) {
        if (json && i)
            printf(",\n ");
        if (json)
            print_json(&infos[i]);
        else
            print_text(&infos[i]);
    }
    if (json)
        printf("]\n");
    if (n == 1 && infos[0].built_in && !json && !getenv("FULGUR_DEVICE"))
        fprintf(stderr, "fulgur: no Vulkan device: a driver (Debian: mesa-vulkan-drivers) and its "
                        "loader (libvulkan1) may be faster\n");
    free(infos);
    return CLI_OK;
}

static int run(int argc, char **argv)
{
    bool json = false, verbose = false;
    const cli_option options[] = {
        {0, "json", NULL, CLI_FLAG, &json, "print JSON"},
        {'v', "verbose", NULL, CLI_FLAG, &verbose, "say more on standard error"},
    };
    int first, code = cli_parse(&cmd_devices, argc, argv, options, sizeof options / sizeof *options,
                                &first);
    if (code >= 0)
        return code;
    if (first != argc) {
        fprintf(stderr, "usage: fulgur devices [--json]\n");
        return CLI_USAGE;
    }
    ful_instance *instance = NULL;
    if (!cli_open_instance(&instance, verbose))
        return CLI_FAILED;
    code = list(instance, json);
    ful_instance_destroy(&instance);
    return code;
}

const cli_command cmd_devices = {"devices", "[options]", "list devices and what they can do", run};
