#version 450
// Compiles where glslang knows GL_EXT_integer_dot_product.
#extension GL_EXT_integer_dot_product : require
layout(local_size_x = 1) in;
layout(set = 0, binding = 0) buffer Out { int o[]; };
void main()
{
    o[0] = dotPacked4x8EXT(o[0], o[1]);
}
