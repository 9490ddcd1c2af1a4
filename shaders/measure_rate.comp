// How fast the device multiplies and adds in registers, without memory. Every invocation (COOPMAT: every
// subgroup or workgroup) repeats LOOPS times CHAINS independent steps, and stores a sum that depends on
// all of them.
//   F32      vec4 a = a * b + c
//   F16      f16vec4 likewise
//   INTDOT   a = dot of 4 x 8 packed bits of a and b
//   COOPMAT  f32 matrix += f16 matrix x f16 matrix, TM x TN x TK; with FLEXIBLE the matrices belong to
//            the workgroup
// Results are the same for all invocations: out [groups] f32.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/dispatch.glsl"
#if defined(F16)
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#elif defined(INTDOT)
#extension GL_EXT_integer_dot_product : require
#elif defined(COOPMAT)
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#if defined(FLEXIBLE)
#extension GL_NV_cooperative_matrix2 : require
#define SCOPE gl_ScopeWorkgroup
#else
#define SCOPE gl_ScopeSubgroup
#endif
#endif

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint TM = 16;
layout(constant_id = 2) const uint TN = 16;
layout(constant_id = 3) const uint TK = 16;

const uint CHAINS = 8u;

layout(push_constant) uniform push_block
{
    uint loops;
    float seed; // 0, but the compiler does not know
}
p;

layout(set = 0, binding = 0) writeonly buffer out_block
{
    float result[];
};

#if defined(COOPMAT)
shared float tile[TM * TN];
#endif

void main()
{
#if defined(COOPMAT)
    coopmat<float16_t, SCOPE, TM, TK, gl_MatrixUseA> a =
        coopmat<float16_t, SCOPE, TM, TK, gl_MatrixUseA>(float16_t(1.0 + p.seed));
    coopmat<float16_t, SCOPE, TK, TN, gl_MatrixUseB> b =
        coopmat<float16_t, SCOPE, TK, TN, gl_MatrixUseB>(float16_t(0.0625 + p.seed));
    coopmat<float, SCOPE, TM, TN, gl_MatrixUseAccumulator> c[CHAINS];
    [[unroll]] for (uint i = 0u; i < CHAINS; i++)
        c[i] = coopmat<float, SCOPE, TM, TN, gl_MatrixUseAccumulator>(p.seed);
    for (uint n = 0u; n < p.loops; n++)
        [[unroll]] for (uint i = 0u; i < CHAINS; i++)
            c[i] = coopMatMulAdd(a, b, c[i]);
    [[unroll]] for (uint i = 1u; i < CHAINS; i++)
        c[0] += c[i];
    coopMatStore(c[0], tile, 0, TN, gl_CooperativeMatrixLayoutRowMajor); // all store the same
    barrier();
    float sum = tile[0];
#elif defined(INTDOT)
    int c[CHAINS];
    uint a = 0x01010101u + uint(p.seed);
    [[unroll]] for (uint i = 0u; i < CHAINS; i++)
        c[i] = 1 + int(p.seed);
    for (uint n = 0u; n < p.loops; n++)
        [[unroll]] for (uint i = 0u; i < CHAINS; i++)
            c[i] = dotPacked4x8EXT(int(a), c[i]);
    float sum = 0.0;
    [[unroll]] for (uint i = 0u; i < CHAINS; i++)
        sum += float(c[i]);
#else
#if defined(F16)
#define NUMBER f16vec4
#else
#define NUMBER vec4
#endif
    NUMBER c[CHAINS];
    NUMBER a = NUMBER(0.5 + p.seed), b = NUMBER(0.5 + p.seed);
    [[unroll]] for (uint i = 0u; i < CHAINS; i++)
        c[i] = NUMBER(p.seed);
    for (uint n = 0u; n < p.loops; n++)
        [[unroll]] for (uint i = 0u; i < CHAINS; i++)
            c[i] = c[i] * a + b; // tends to 1
    float sum = 0.0;
    [[unroll]] for (uint i = 0u; i < CHAINS; i++)
        sum += float(c[i].x + c[i].y + c[i].z + c[i].w);
#endif
    if (gl_LocalInvocationID.x == 0u)
        result[line_group()] = sum;
}
