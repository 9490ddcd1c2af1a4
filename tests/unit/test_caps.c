/* Taking capabilities away, the floor, and what shader variants need. */
#include "gpu/gpu_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static ful_caps rich(void)
{
    ful_caps c = {
        .features = (1u << 14) - 1,
        .api_version = VK_API_VERSION_1_3,
        .subgroup_size = 32,
        .subgroup_min = 8,
        .subgroup_max = 64,
        .workgroup_invocations = 1024,
        .workgroup_size = {1024, 1024, 64},
        .workgroup_count = {65535, 65535, 65535},
        .shared_bytes = 49152,
        .push_bytes = 256,
        .storage_buffers = 16,
        .storage_align_bytes = 16,
        .uniform_align_bytes = 64,
        .uniform_range_bytes = 65536,
        .storage_range_bytes = 1ull << 31,
        .allocation_bytes = 1ull << 32,
        .non_coherent_atom_bytes = 64,
        .device_memory_bytes = 1ull << 33,
        .host_visible_local_bytes = 1ull << 28,
        .timestamp_period_ns = 1,
        .unified_memory = true,
    };
    return c;
}

static void test_limits(void **state)
{
    (void)state;
    ful_caps c = rich();
    assert_int_equal(caps_apply("shared=16384,workgroup=128, buffers=4 ,range=1048576,"
                                "allocation=2000000,push=128,memory=1000000,unified=0",
                                "test", FUL_DEVICE_DISCRETE, &c),
                     FUL_OK);
    assert_int_equal(c.shared_bytes, 16384);
    assert_int_equal(c.workgroup_invocations, 128);
    assert_int_equal(c.workgroup_size[0], 128);
    assert_int_equal(c.workgroup_size[2], 64); /* was less */
    assert_int_equal(c.storage_buffers, 4);
    assert_int_equal(c.storage_range_bytes, 1048576);
    assert_int_equal(c.allocation_bytes, 2000000);
    assert_int_equal(c.push_bytes, 128);
    assert_int_equal(c.device_memory_bytes, 1000000);
    assert_int_equal(c.host_visible_local_bytes, 1000000);
    assert_false(c.unified_memory);
}

/* Nothing can be added. */
static void test_only_less(void **state)
{
    (void)state;
    ful_caps c = rich(), before;
    memcpy(&before, &c, sizeof(c));
    assert_int_equal(caps_apply("shared=99999999999,workgroup=4096,buffers=400,"
                                "range=18446744073709551615,allocation=9999999999999,push=4096,"
                                "memory=9999999999999",
                                "test", FUL_DEVICE_DISCRETE, &c),
                     FUL_OK);
    assert_memory_equal(&c, &before, sizeof(c));
    assert_int_equal(caps_apply("", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_int_equal(caps_apply(NULL, "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_int_equal(caps_apply(" , ,", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_memory_equal(&c, &before, sizeof(c));
}

static void test_features(void **state)
{
    (void)state;
    for (uint32_t bit = 1; bit < 1u << 14; bit <<= 1) {
        ful_caps c = rich();
        char text[40] = "-";
        assert_non_null(ful_feature_name(bit));
        strcat(text, ful_feature_name(bit));
        assert_int_equal(caps_apply(text, "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
        assert_false(c.features & bit);
    }
    assert_null(ful_feature_name(1u << 14));
    assert_null(ful_feature_name(3));
}

/* What makes no sense without something else goes with it. */
static void test_dependent(void **state)
{
    (void)state;
    ful_caps c = rich();
    assert_int_equal(caps_apply("-subgroup", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_int_equal(c.subgroup_size, 1);
    assert_int_equal(c.subgroup_min, 1);
    assert_int_equal(c.subgroup_max, 1);
    assert_false(c.features & (FUL_FEATURE_SUBGROUP | FUL_FEATURE_COOPMAT | FUL_FEATURE_COOPMAT2 |
                               FUL_FEATURE_SUBGROUP_SIZE));
    assert_true(c.features & FUL_FEATURE_FP16);
    c = rich();
    assert_int_equal(caps_apply("-coopmat", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_false(c.features & FUL_FEATURE_COOPMAT2);
    assert_true(c.features & FUL_FEATURE_SUBGROUP);
    c = rich();
    caps_remove(FUL_FEATURE_TIMESTAMP, &c);
    assert_true(c.timestamp_period_ns == 0);
}

static void test_subgroup_size(void **state)
{
    (void)state;
    ful_caps c = rich();
    assert_int_equal(caps_apply("subgroup_size=16", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_int_equal(c.subgroup_size, 16);
    assert_int_equal(c.subgroup_min, 16);
    assert_int_equal(c.subgroup_max, 16);
    assert_true(c.features & FUL_FEATURE_SUBGROUP);
    assert_int_equal(caps_apply("subgroup_size=16", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_true(c.features & FUL_FEATURE_SUBGROUP);
    const char *impossible[] = {"subgroup_size=128", "subgroup_size=4", "subgroup_size=24",
                                "subgroup_size=1", "subgroup_size=0"};
    for (size_t i = 0; i < sizeof(impossible) / sizeof(impossible[0]); i++) {
        c = rich();
        assert_int_equal(caps_apply(impossible[i], "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
        assert_int_equal(c.subgroup_size, 1);
        assert_false(c.features & FUL_FEATURE_SUBGROUP);
    }
    c = rich(); /* a device that can't choose */
    c.features &= ~(uint32_t)FUL_FEATURE_SUBGROUP_SIZE;
    c.subgroup_min = c.subgroup_max = 32;
    assert_int_equal(caps_apply("subgroup_size=32", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_int_equal(c.subgroup_size, 32);
    assert_int_equal(caps_apply("subgroup_size=16", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_int_equal(c.subgroup_size, 1);
}

static void test_matrix(void **state)
{
    (void)state;
    const ful_matrix_shape first = {16, 16, 16}, other = {16, 8, 16};
    ful_caps c = rich();
    c.matrix_count = 0;
    caps_add_matrix(&c, first);
    caps_add_matrix(&c, other);
    const ful_caps two = c;
    assert_int_equal(caps_apply("matrix=16x8x16", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_int_equal(c.matrix_count, 1);
    assert_memory_equal(&c.matrix[0], &other, sizeof(other));
    assert_int_equal(c.features, two.features);
    /* Only devices that run on the processor have shapes that they do not list. */
    for (int kind = FUL_DEVICE_OTHER; kind <= FUL_DEVICE_CPU; kind++) {
        c = two;
        assert_int_equal(caps_apply("matrix=8x8x8", "test", (ful_device_kind)kind, &c), FUL_OK);
        assert_int_equal(c.matrix_count, kind == FUL_DEVICE_CPU ? 1 : 0);
        assert_int_equal(c.matrix[0].m, kind == FUL_DEVICE_CPU ? 8 : 0);
        assert_int_equal((c.features & FUL_FEATURE_COOPMAT) != 0, kind == FUL_DEVICE_CPU);
    }
    c = two; /* no kernel has this one */
    assert_int_equal(caps_apply("matrix=7x8x8", "test", FUL_DEVICE_CPU, &c), FUL_OK);
    assert_false(c.features & FUL_FEATURE_COOPMAT);
    c = two;
    assert_int_equal(caps_apply("-coopmat,matrix=8x8x8", "test", FUL_DEVICE_CPU, &c), FUL_OK);
    assert_int_equal(c.matrix_count, 0);
    assert_false(c.features & FUL_FEATURE_COOPMAT);
}

static void test_bad_words(void **state)
{
    (void)state;
    const char *bad[] = {"-nothing",    "fp16",        "-",
                         "shared",      "shared=",     "shared=12k",
                         "shared=-1",   "nothing=5",   "=5",
                         "-fp16=1",     "--fp16",      "+fp16",
                         "shared=0x10", "shared=1.5",  "-FP16",
                         "-fp1",        "-fp166",      "range=99999999999999999999999",
                         "matrix",      "matrix=16",   "matrix=16x16",
                         "matrix=8x8x", "matrix=x8x8", "matrix=8x8x8x8"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char text[80] = "-int8,";
        ful_caps c = rich(), before;
        memcpy(&before, &c, sizeof(c));
        strcat(text, bad[i]);
        assert_int_equal(caps_apply(text, "FULGUR_CAPS", FUL_DEVICE_DISCRETE, &c),
                         FUL_ERR_ARGUMENT);
        assert_memory_equal(&c, &before, sizeof(c));
        assert_non_null(strstr(ful_last_error(), bad[i]));
        assert_non_null(strstr(ful_last_error(), "FULGUR_CAPS"));
    }
}

static void test_floor(void **state)
{
    (void)state;
    char why[160];
    const ful_caps raw = rich();
    ful_caps c = raw;
    assert_true(caps_meet_floor(&c, &raw, why, sizeof(why)));
    assert_string_equal(why, "");
    assert_int_equal(caps_apply("-subgroup,-fp16,-int8,-storage16,-storage8,-intdot,-address,"
                                "-timeline,-timestamp,-budget,shared=16384,workgroup=128,buffers=4,"
                                "push=128,range=1048576",
                                "test", FUL_DEVICE_DISCRETE, &c),
                     FUL_OK);
    assert_true(caps_meet_floor(&c, &raw, why, sizeof(why)));
    const struct {
        const char *mask, *part;
    } below[] = {{"buffers=3", "storage buffers"}, {"workgroup=127", "127"},
                 {"shared=16383", "16383"},        {"push=127", "push"},
                 {"range=65535", "65535"},         {"allocation=10", "allocation"}};
    for (size_t i = 0; i < sizeof(below) / sizeof(below[0]); i++) {
        c = raw;
        assert_int_equal(caps_apply(below[i].mask, "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
        assert_false(caps_meet_floor(&c, &raw, why, sizeof(why)));
        assert_non_null(strstr(why, below[i].part));
    }
    ful_caps weak = raw; /* a device whose own bindings are too small */
    weak.storage_range_bytes = (128u << 20) - 1;
    assert_false(caps_meet_floor(&weak, &weak, why, sizeof(why)));
    /* Vulkan 1.0 is enough, but has no kernel beyond the floor's. */
    weak = raw;
    weak.api_version = VK_API_VERSION_1_0;
    caps_remove(0, &weak);
    assert_true(caps_meet_floor(&weak, &weak, why, sizeof(why)));
    assert_int_equal(weak.features & ~(uint32_t)FUL_FEATURE_PORTABILITY, FUL_FEATURE_TIMESTAMP);
    assert_int_equal(weak.subgroup_size, 1);
    assert_int_equal(weak.matrix_count, 0);
    weak = raw;
    weak.storage_align_bytes = 512;
    assert_false(caps_meet_floor(&weak, &weak, why, sizeof(why)));
    assert_non_null(strstr(why, "512"));
}

static void test_needs(void **state)
{
    (void)state;
    const ful_caps all = rich();
    assert_true(caps_meet_needs(&all, "", NULL, NULL));
    assert_true(caps_meet_needs(&all, NULL, NULL, NULL));
    assert_true(caps_meet_needs(&all,
                                "fp16 storage16 storage8 int8 intdot subgroup coopmat coopmat2 "
                                "address vk13 buffers16 shared48 workgroup1024 push256",
                                NULL, NULL));
    const struct {
        const char *needs, *mask, *missing;
    } rows[] = {
        {"fp16 storage16", "-fp16", "fp16"},
        {"fp16 storage16", "-storage16", "storage16"},
        {"subgroup", "-subgroup", "subgroup"},
        {"fp16 coopmat", "-subgroup", "coopmat"},
        {"coopmat2", "-coopmat", "coopmat2"},
        {"buffers6", "buffers=5", "buffers6"},
        {"shared32", "shared=32767", "shared32"},
        {"workgroup256", "workgroup=255", "workgroup256"},
        {"buffers17", "", "buffers17"},
        {"nonsense", "", "nonsense"}, /* a word nobody knows is not met */
        {"fp1", "", "fp1"},
        {"buffers", "", "buffers"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ful_caps c = all;
        const char *word = NULL;
        size_t bytes = 0;
        assert_int_equal(caps_apply(rows[i].mask, "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
        assert_false(caps_meet_needs(&c, rows[i].needs, &word, &bytes));
        assert_int_equal(bytes, strlen(rows[i].missing));
        assert_memory_equal(word, rows[i].missing, bytes);
    }
    ful_caps old = all;
    old.api_version = VK_API_VERSION_1_2;
    assert_false(caps_meet_needs(&old, "vk13", NULL, NULL));
}

static void test_distrust(void **state)
{
    (void)state;
    ful_caps c = rich(), untouched;
    memcpy(&untouched, &c, sizeof(c));
    caps_identity plain = {0x10de, 1, VK_DRIVER_ID_NVIDIA_PROPRIETARY};
    caps_distrust(&plain, &c);
    assert_memory_equal(&c, &untouched, sizeof(c));
    caps_identity adreno = {0x5143, 1, VK_DRIVER_ID_QUALCOMM_PROPRIETARY};
    caps_distrust(&adreno, &c);
    assert_false(c.features & FUL_FEATURE_SUBGROUP);
    assert_true(c.features & FUL_FEATURE_FP16);
    c = rich();
    c.features &= ~(uint32_t)FUL_FEATURE_STORAGE16;
    caps_distrust(&adreno, &c);
    assert_false(c.features & FUL_FEATURE_FP16);
    c = rich();
    caps_identity metal = {0x1002, 1, VK_DRIVER_ID_MOLTENVK};
    caps_distrust(&metal, &c);
    assert_false(c.features & FUL_FEATURE_SUBGROUP);
}

/* Lists of drivers in their own order, with shapes nobody knows. */
static void test_matrices(void **state)
{
    (void)state;
    ful_caps c = rich();
    caps_add_matrix(&c, (ful_matrix_shape){16, 8, 8});
    caps_settle_matrices(0x10de, &c);
    assert_int_equal(c.matrix_count, 0);
    assert_false(c.features & (FUL_FEATURE_COOPMAT | FUL_FEATURE_COOPMAT2));

    c = rich();
    static const ful_matrix_shape listed[] = {{8, 8, 8},    {16, 8, 8},   {16, 8, 16}, {64, 64, 16},
                                              {16, 16, 16}, {16, 8, 16},  {8, 8, 16},  {8, 16, 16},
                                              {16, 16, 16}, {32, 32, 16}, {8, 8, 8}};
    for (size_t i = 0; i < sizeof(listed) / sizeof(listed[0]); i++)
        caps_add_matrix(&c, listed[i]);
    static const ful_matrix_shape want[] = {
        {16, 16, 16}, {16, 8, 16}, {8, 16, 16}, {8, 8, 16}, {8, 8, 8}};
    assert_int_equal(c.matrix_count, 5);
    assert_memory_equal(c.matrix, want, sizeof(want));
    for (uint32_t i = 0; i < 20; i++)
        caps_add_flexible(&c, &(ful_matrix_grain){16, 16, 16, 128, true});
    assert_int_equal(c.flexible_count, FUL_MATRIX_SHAPES);
    ful_caps intel = c, loose = c;
    caps_settle_matrices(0x10de, &c);
    assert_int_equal(c.matrix_subgroup, 32);
    assert_true(c.features & FUL_FEATURE_COOPMAT);
    ful_caps early = intel; /* subgroups of 8: a compiler that spills */
    caps_settle_matrices(0x8086, &early);
    assert_int_equal(early.matrix_count, 0);
    assert_false(early.features & FUL_FEATURE_COOPMAT);
    intel.subgroup_min = 16;
    caps_settle_matrices(0x8086, &intel);
    assert_int_equal(intel.matrix_subgroup, 16);
    assert_true(intel.features & FUL_FEATURE_COOPMAT);
    /* Subgroups of several sizes, none of which can be required. */
    loose.features &= ~(uint32_t)FUL_FEATURE_SUBGROUP_SIZE;
    caps_settle_matrices(0x10de, &loose);
    assert_false(loose.features & FUL_FEATURE_COOPMAT);

    ful_caps masked = c;
    assert_int_equal(caps_apply("-coopmat2", "test", FUL_DEVICE_DISCRETE, &masked), FUL_OK);
    assert_int_equal(masked.matrix_count, 5);
    assert_int_equal(masked.flexible_count, 0);
    assert_int_equal(caps_apply("-coopmat", "test", FUL_DEVICE_DISCRETE, &masked), FUL_OK);
    assert_int_equal(masked.matrix_count, 0);
    assert_int_equal(masked.matrix_subgroup, 0);
    masked = c;
    assert_int_equal(caps_apply("subgroup_size=16", "test", FUL_DEVICE_DISCRETE, &masked), FUL_OK);
    assert_int_equal(masked.subgroup_size, 16);
    assert_false(masked.features & FUL_FEATURE_COOPMAT); /* its matrices want 32 */
    assert_int_equal(caps_apply("subgroup_size=32", "test", FUL_DEVICE_DISCRETE, &c), FUL_OK);
    assert_true(c.features & FUL_FEATURE_COOPMAT);
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(ful_device_kind_name(FUL_DEVICE_DISCRETE), "discrete GPU");
    assert_string_equal(ful_device_kind_name(FUL_DEVICE_CPU), "CPU");
    assert_string_equal(ful_device_kind_name(FUL_DEVICE_OTHER), "other device");
    assert_string_equal(ful_feature_name(FUL_FEATURE_INT_DOT), "intdot");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits),        cmocka_unit_test(test_only_less),
        cmocka_unit_test(test_features),      cmocka_unit_test(test_dependent),
        cmocka_unit_test(test_subgroup_size), cmocka_unit_test(test_matrix),
        cmocka_unit_test(test_bad_words),     cmocka_unit_test(test_floor),
        cmocka_unit_test(test_needs),         cmocka_unit_test(test_distrust),
        cmocka_unit_test(test_matrices),      cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests_name("caps", tests, NULL, NULL);
}
