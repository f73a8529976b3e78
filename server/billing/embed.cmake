# Makes SOURCE.c with the bytes of a text file: cmake -DINPUT=ledger.lua -DOUTPUT=ledger_lua.c -P embed.cmake
file(READ ${INPUT} bytes HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(WRITE ${OUTPUT} "/* Made from ledger.lua by embed.cmake. */\n#include \"server/billing/ledger_lua.h\"\n\n"
  "const char ledger_lua[] = {${bytes}0x00};\nconst size_t ledger_lua_bytes = sizeof(ledger_lua) - 1;\n")
