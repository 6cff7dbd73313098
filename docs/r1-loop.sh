#!/usr/bin/env bash
# The DeepSeek-R1 process from end to end, at toy size, on a CPU: `docs/r1-loop.sh [DIR=r1]`, or `make r1`.
#
# Every box of both diagrams in docs/r1.md, by the commands that a full run takes, with the packaged recipes' smoke siblings.
# Real are models, servers, rollouts, verifiers, releases and trainers. A program stands in for the two things that no toy
# model can do, to rewrite and to judge (DeepSeek-V3 in the paper), and for people who read: builder/toy/editor.py.
set -euo pipefail
mkdir -p "${1:-r1}" && cd "${1:-r1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" GOMP_SPINCOUNT=10000 TRANSFORMERS_VERBOSITY=error
PORT="${PORT:-8101}" EDITOR_PORT="${EDITOR_PORT:-8102}"
export OPENAI_BASE_URL="http://127.0.0.1:$PORT/v1"
editor="http://127.0.0.1:$EDITOR_PORT/v1"
SEED="${SEED:-0}" # of questions, base, samples and training
ours=(release.license=apache-2.0 generation.seed="$SEED")

say() { printf '\n[%4d s] %s\n' "$SECONDS" "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
up() { until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do sleep 0.2; done; }
serving=
serve() { # serve NAME: the box of that name behind an endpoint
    [ -z "$serving" ] || { kill "$serving"; wait "$serving" || true; }
    printf '$ builder serve %s --model-name %s --port %s &\n' "boxes/$1" "$1" "$PORT"
    builder serve "boxes/$1" --model-name "$1" --port "$PORT" >"serve-$1.log" 2>&1 &
    serving=$! && up "$PORT"
}
model() { [ -d "models/$1" ] || { rm -rf "models/.$1"; run python -m "${@:2}" "models/.$1" --seed "$SEED"; mv "models/.$1" "models/$1"; }; }
box() { mkdir -p boxes && ln -sfn "../$2" "boxes/$1"; }                      # box NAME FOLDER: what a box came to
weights() { python -c 'import json, sys; print(json.load(open(sys.argv[1]))["weights_sha256"])' "boxes/$1/training.json"; }
teacher() { printf '%s ' teacher.model="$1" teacher.revision="$(weights "$1")" teacher.license=apache-2.0; }
train() { run trainer run --dataset "$1" --model "boxes/$2" --output "models/$3" --recipe smoke --quiet defaults.seed="$((42 + SEED))" "${@:4}"; box "$3" "models/$3/final"; }

python -m builder.toy.editor --port "$EDITOR_PORT" >editor.log 2>&1 &
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
up "$EDITOR_PORT"
run python -m builder.toy.materials . --seed "$SEED"

say "A1, B1: a base model, which can calculate and writes as the web does"
model base builder.toy.base
box base models/base

say "A5, A7: R1-Zero, GRPO from the base on rules alone: accuracy and format"
run builder run r1-zero-smoke --quiet prompts.0.source=questions.jsonl "${ours[@]}"
train runs/r1-zero-smoke/releases/v1 base r1-zero 'stages.grpo.rewards={language: 0}'

say "A2, B3: cold start: R1-Zero answers, right and readable replies are rewritten, verified again, read by people"
serve r1-zero
cold=(r1-cold-start-smoke --quiet prompts.0.source=questions.jsonl $(teacher r1-zero) rewrite.model=toy-editor
    rewrite.endpoints.0.url="$editor" rewrite.license=apache-2.0 "${ours[@]}")
run builder generate "${cold[@]}"
for step in verify rewrite verify; do run builder "$step" "${cold[@]}"; done
[ -f review.jsonl ] || run builder review "${cold[@]}" --export review.jsonl --sample 40
run python -m builder.toy.editor --review review.jsonl
run builder review "${cold[@]}" --import review.jsonl
run builder select "${cold[@]}"
run builder release "${cold[@]}"

say "A3, B2: SFT of the base on the cold start"
train runs/r1-cold-start-smoke/releases/v1 base cold-start defaults.learning_rate=1e-4

say "A5, A6, B4: RL 1: accuracy, format and language"
train runs/r1-zero-smoke/releases/v1 cold-start rl-1

say "A9, A10, B6: rejection sampling from that checkpoint"
serve rl-1
run builder run r1-reasoning-smoke --quiet prompts.0.source=questions.jsonl $(teacher rl-1) "${ours[@]}"

say "A11 to A14, B8: general answers: fine-tuning data that is there, and replies of the checkpoint with thoughts"
general=(r1-general-smoke --quiet prompts.0.source=general.jsonl $(teacher rl-1) "${ours[@]}")
run builder import "${general[@]}" answers.jsonl --format messages --temperature 0 --finish-reason stop --license apache-2.0
run builder run "${general[@]}"

say "A15: the mix"
mix=(r1-mix-smoke --quiet prompts.0.source=prompts.jsonl $(teacher rl-1) "${ours[@]}" stages.mix.quotas.rows=1200)
for part in r1-reasoning-smoke r1-general-smoke; do run builder import "${mix[@]}" "runs/$part/releases/v1" --format release; done
run builder verify "${mix[@]}"
run builder select "${mix[@]}"
run builder release "${mix[@]}"

say "A16, B7: SFT of the base again, two epochs"
train runs/r1-mix-smoke/releases/v1 base sft defaults.num_train_epochs=2 defaults.learning_rate=2e-4

say "B10: preference pairs of that checkpoint's replies, and a model that knows which is preferred"
serve sft
run builder run r1-preference-smoke --quiet prompts.0.source=prompts.jsonl $(teacher sft) judge.model=toy-editor \
    judge.endpoints.0.url="$editor" "${ours[@]}"
train runs/r1-preference-smoke/releases/v1 sft preference

say "A17, A18, B9, B10, B11: RL 2: rules, then rules and preference"
run builder run r1-rl-smoke --quiet prompts.0.source=prompts.jsonl "${ours[@]}"
train runs/r1-rl-smoke/releases/v1 sft rl-2 stages.rl-preference.reward_models.helpfulness=boxes/preference \
    stages.rl-preference.rewards.helpfulness=1.0

say "A19 to A21, B12 to B14: a smaller student, by SFT on the mix"
model student builder.toy.train student
box student models/student
train runs/r1-mix-smoke/releases/v1 student distilled defaults.num_train_epochs=8 defaults.learning_rate=7e-3 defaults.lr_scheduler_type=cosine

say "pass@1 after each box, at T = 1.0: questions with the right number, ends of stories that say what is left of what"
kill "$serving" && serving=
run builder eval r1-zero-smoke prompts.0.source=questions.jsonl generation.max_tokens=300 generation.seed="$SEED" --questions held-out-questions.jsonl \
    --questions held-out-stories.jsonl $(printf -- '--model boxes/%s ' base r1-zero cold-start rl-1 sft rl-2 student distilled)
say "done; boxes/*/training.json name the release and the models that each one came from"
