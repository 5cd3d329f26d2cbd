#!/bin/sh
# Makes the corpora that fuzzing begins with, of the fixtures.
set -eu
cd "$(dirname "$0")"
fixtures=../tests/fixtures
mkdir -p corpus/gguf corpus/safetensors corpus/adapter corpus/frames corpus/import corpus/config
cp "$fixtures"/gguf/*.gguf corpus/gguf/
cp "$fixtures"/qwen3/model.safetensors corpus/safetensors/
for adapter in "$fixtures"/qwen3/peft_*; do
    config=$adapter/adapter_config.json
    python3 -c 'import os, struct, sys; sys.stdout.buffer.write(struct.pack("<I", os.path.getsize(sys.argv[1])))' "$config" |
        cat - "$config" "$adapter/adapter_model.safetensors" > "corpus/adapter/$(basename "$adapter")"
done
cp ../config/*.toml ../config/samples/*.toml corpus/config/
printf '%s\n' '{"messages":[{"role":"user","content":"q"}],"response":"a","mark":"fix","fix":"b","weight":3,"note":"n","domain":"rust"}' > corpus/import/fix
printf '%s\n\n%s\n' '{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"}],"response":"a","mark":"good"}' \
    '{"id":1,"messages":[{"role":"user","content":"q"}],"response":"a","mark":"critical","created_at":"x","consumed_by":null}' > corpus/import/two
# One frame each of a heartbeat, progress and a note; the first byte chooses the reader.
printf '\001\001\000\000\000\000' > corpus/frames/first
printf '\001\003\000\000\000\004\001x' > corpus/frames/text
printf '\003\001\000\000\000\000' > corpus/frames/command
