#!/bin/sh
# Makes the corpora that fuzzing begins with, of the fixtures.
set -eu
cd "$(dirname "$0")"
fixtures=../tests/fixtures
mkdir -p corpus/gguf corpus/safetensors corpus/adapter
cp "$fixtures"/gguf/*.gguf corpus/gguf/
cp "$fixtures"/qwen3/model.safetensors corpus/safetensors/
for adapter in "$fixtures"/qwen3/peft_*; do
    config=$adapter/adapter_config.json
    python3 -c 'import os, struct, sys; sys.stdout.buffer.write(struct.pack("<I", os.path.getsize(sys.argv[1])))' "$config" |
        cat - "$config" "$adapter/adapter_model.safetensors" > "corpus/adapter/$(basename "$adapter")"
done
