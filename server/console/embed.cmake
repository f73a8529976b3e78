# Makes console_files.c of the files of the console: cmake -DFOLDER=server/console -DOUTPUT=console_files.c -P embed.cmake
# The order and the bytes are those of the files alone, so that the same tree gives the same binary. An ETag is the start of
# the file's SHA-256: what a browser has kept is right until the bytes change.
set(table "")
set(arrays "")
foreach(entry "index.html|/console|text/html" "console.css|/console/console.css|text/css"
    "show.js|/console/show.js|text/javascript" "chart.js|/console/chart.js|text/javascript"
    "live.js|/console/live.js|text/javascript" "chat.js|/console/chat.js|text/javascript"
    "icon.svg|/console/icon.svg|image/svg+xml")
  string(REPLACE "|" ";" entry "${entry}")
  list(GET entry 0 file)
  list(GET entry 1 path)
  list(GET entry 2 type)
  string(MAKE_C_IDENTIFIER ${file} name)
  file(READ ${FOLDER}/${file} bytes HEX)
  file(SHA256 ${FOLDER}/${file} hash)
  string(SUBSTRING ${hash} 0 32 hash)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
  string(APPEND arrays "static const unsigned char ${name}[] = {${bytes}};\n")
  string(APPEND table "    {\"${path}\", \"${type}; charset=utf-8\", \"\\\"${hash}\\\"\", ${name}, sizeof ${name}},\n")
endforeach()
file(WRITE ${OUTPUT} "/* Made from server/console/ by embed.cmake. */\n#include \"server/console.h\"\n\n${arrays}\n"
  "const struct console_file console_files[] = {\n${table}};\n"
  "const size_t console_files_count = sizeof console_files / sizeof console_files[0];\n")
