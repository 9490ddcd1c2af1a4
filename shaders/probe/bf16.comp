#version 450
// Compiles where glslang knows GL_EXT_bfloat16.
#extension GL_EXT_bfloat16 : require
layout(local_size_x = 1) in;
layout(set = 0, binding = 0) buffer Out { float o[]; };
void main()
{
    bfloat16_t b = bfloat16_t(o[0]);
    o[0] = float(b);
}
