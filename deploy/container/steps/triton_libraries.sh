#!/bin/sh
# Installs the libraries of Triton's that TensorRT-LLM's release image does not have; what NVIDIA installs for the same
# transplant (TensorRT-LLM docker/common/install_triton.sh), and curl, which its base image has.
set -eu
cuda=${CUDA_VERSION:-13}
apt-get update
apt-get install -y --no-install-recommends \
    libarchive-dev libb64-dev libcurl4-openssl-dev libnuma-dev libre2-dev libxml2-dev \
    "datacenter-gpu-manager-4-cuda${cuda%%.*}"
