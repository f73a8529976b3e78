# Makes NAME_lua.c with the bytes of a text file: cmake -DINPUT=ledger.lua -DOUTPUT=ledger_lua.c -DLIBRARY=billing/ledger
# -DNAME=ledger -P embed.cmake
file(READ ${INPUT} bytes HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(WRITE ${OUTPUT} "/* Made from ${NAME}.lua by embed.cmake. */\n#include \"server/${LIBRARY}_lua.h\"\n\n"
  "const char ${NAME}_lua[] = {${bytes}0x00};\nconst size_t ${NAME}_lua_bytes = sizeof(${NAME}_lua) - 1;\n")
