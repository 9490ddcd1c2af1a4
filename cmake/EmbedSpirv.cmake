# cmake -DNAME=... -DSPV=... -DHEADER=... -P: SPIR-V as a C array. glslang writes little-endian words.
file(READ ${SPV} _hex HEX)
string(REGEX REPLACE "(..)(..)(..)(..)" "0x\\4\\3\\2\\1," _words "${_hex}")
string(REGEX REPLACE "((0x[0-9a-f]+,)(0x[0-9a-f]+,)(0x[0-9a-f]+,)(0x[0-9a-f]+,)(0x[0-9a-f]+,)(0x[0-9a-f]+,)(0x[0-9a-f]+,)(0x[0-9a-f]+,))"
    "\\1\n" _words "${_words}")
file(WRITE ${HEADER} "static const uint32_t spirv_${NAME}[] = {\n${_words}\n};\n")
