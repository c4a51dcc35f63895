# ---- the same for every run from here on -----------------------------------------------------------------------------
# Argument: the step to stop at; default: the run's last.
# Exit codes: 0: that step is reached and saved; 2: bad input, not tried again; 75: saved, but the job could not be
# requeued, so submit it again; any other: a failure that came max_attempts times without a new checkpoint.
set -uo pipefail
state=$run/slurm
target=${1:-$total_steps}
(($# > 0)) && overrides+=("training.stop_after_steps=$target")
# the last task of an array has the array's own id as SLURM_JOB_ID
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
# these may come from another job, through the environment of the submitting shell
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT PMI_RANK PMI_SIZE PMIX_RANK
unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK
mkdir -p "$state"
touch "$state/excluded-nodes"

say() { printf '%s job %s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$job" "$*"; }
# all excluded names, one a line; a person may write host lists such as node[1-3,7] into the file
excluded() {
  local lists
  lists=$({ echo "$exclude"; cat "$state/excluded-nodes"; } | grep . | paste -sd,)
  [[ -z $lists ]] || scontrol show hostnames "$lists" | sort -u
}
latest() { cat "$run/checkpoints/latest" 2>/dev/null || echo none; }
reached() {
  local name
  name=$(latest)
  [[ $name == step-* ]] && ((10#${name#step-} >= target))
}

# requeues the job and ends it with code $1, also when it cannot be requeued
try_again() {
  local job_state nodes
  trap '' TERM # the requeue sends TERM to all processes of the job; the commands below must still run
  for _ in 1 2 3 4 5 6; do # a controller may be slow to answer
    job_state=$(scontrol -o show job "$job" | grep -oE '(JobState|Reason)=[^ ]*' | paste -sd' ') && break
    sleep 10
  done
  case $job_state in
    JobState=RUNNING* | *Reason=TimeLimit) ;;
    # cancelled, or requeued by Slurm itself because of a failed node or a preemption
    *) say "ends; Slurm decides whether it is requeued: $job_state"; exit "$1" ;;
  esac
  nodes=$(excluded | paste -sd,)
  if ! scontrol requeue "$job"; then
    say "cannot be requeued; to continue, submit $script"
    exit "$1"
  fi
  # Slurm allows this for a waiting job only, which this job is now, although its script still runs for a moment
  [[ -n $nodes ]] && scontrol update JobId="$job" ExcNodeList="$nodes"
  exit "$1"
}

# counts the starts since the last new checkpoint, whatever ended them
count_attempt() {
  local before attempts
  read -r before attempts 2>/dev/null <"$state/attempts" || { before= attempts=0; }
  [[ $before == "$(latest)" ]] || attempts=0
  # without the count the job would be requeued for ever
  if ! printf '%s %s\n' "$(latest)" $((attempts + 1)) >"$state/attempts"; then
    say "given up: $state/attempts cannot be written, the disk may be full. Free some space, then submit again"
    exit 1
  fi
  if ((attempts >= max_attempts)); then
    say "given up: $attempts starts without a new checkpoint (now $(latest)). Read $run/log/, then submit again"
    exit 1
  fi
  say "start $((attempts + 1)) of at most $max_attempts from checkpoint $(latest), on $SLURM_JOB_NODELIST"
}

# one process on each node checks the node and meets the others; each writes a line: ok, bad REASON, or unclear REASON
check_nodes() {
  local node verdict silent left unclear=0 bad=()
  rm -rf "$state/nodes" && mkdir -p "$state/nodes"
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    excluded | grep -qxF "$node" && { say "$node was found bad before"; try_again 1; }
  done
  timeout -k 10 "$check_seconds" srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --wait=0 "${container_options[@]}" "${python[@]}" "$project/launchers/check_nodes.py" "${check_options[@]}" "$state/nodes" &
  wait_for $!
  silent='unclear gave no result, see above' # when no node answered, the check itself failed, such as a wrong Python
  if ((code == 124 || code == 137)) || [[ -n $(ls "$state/nodes") ]]; then
    silent="bad gave no answer in $run within $check_seconds s"
  fi
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    verdict=$(cat "$state/nodes/$node" 2>/dev/null || echo "$silent")
    case $verdict in
      ok*) continue ;;
      bad*) bad+=("$node"); say "node $node is bad: ${verdict#bad }" ;;
      *) unclear=1; say "node $node: ${verdict#unclear }" ;;
    esac
  done
  if ((${#bad[@]} > 1 && ${#bad[@]} == SLURM_JOB_NUM_NODES)); then
    say "no node is excluded: when all of them fail, the cause is probably something they share"
  elif ((${#bad[@]})); then
    printf '%s\n' "${bad[@]}" >>"$state/excluded-nodes"
    left=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o %N | sort -u | grep -vxFc -f <(excluded))
    if ((left < SLURM_JOB_NUM_NODES)); then
      say "given up: without the bad nodes $SLURM_JOB_PARTITION has $left. Repair them and delete $state/excluded-nodes"
      exit 1
    fi
  fi
  ((${#bad[@]} || unclear)) && try_again 1
  return 0
}

# waits for a job step to end, although signals interrupt `wait`; its exit code is in $code
step_pid=
wait_for() {
  step_pid=$1
  wait "$step_pid"; code=$?
  while kill -0 "$step_pid" 2>/dev/null; do wait "$step_pid"; code=$?; done
  step_pid=
}
# Slurm signals the ranks itself; a signal to this script alone is passed on to them
trap '[[ -n $step_pid ]] && kill -USR2 "$step_pid"' TERM USR2

# submits an evaluation job for every kept checkpoint that has none yet
evaluate_kept() {
  local checkpoint step noted id
  [[ -n $evaluation ]] || return 0
  mkdir -p "$state/evaluated"
  for checkpoint in "$run"/checkpoints/step-*[0-9]; do
    [[ -e $checkpoint/manifest.json ]] || continue
    step=$((10#${checkpoint##*-}))
    ((step == total_steps || (keep_every > 0 && step % keep_every == 0))) || continue
    noted=$state/evaluated/${checkpoint##*/}
    [[ ! -e $noted ]] && id=$(sbatch --parsable "$evaluation" "${checkpoint##*/}") || continue
    echo "$id" >"$noted"
    say "${checkpoint##*/} is evaluated by job $id"
  done
}

if [[ -e $state/finished ]] && (($(<"$state/finished") >= target)); then
  say "step $target was reached before: nothing to do"
  exit 0
fi
count_attempt
((check_seconds == 0)) || check_nodes
watcher=
[[ -z $evaluation ]] || { while sleep 20; do evaluate_kept; done & watcher=$!; }
# no --kill-on-bad-exit: it would kill ranks that end one after the other with 75, and lose this exit code
srun "${srun_options[@]}" "${container_options[@]}" --wait=60 \
  "${python[@]}" "$project/launchers/pretrain.py" --config "$config" "${overrides[@]}" &
wait_for $!
[[ -z $watcher ]] || { kill "$watcher"; wait "$watcher" 2>/dev/null; }
evaluate_kept
say "training ended with $code, checkpoint $(latest)"
if [[ $code == 0 || $code == 75 ]] && reached; then
  echo "$target" >"$state/finished"
  exit 0
fi
case $code in
  0) exit 0 ;;
  2) exit 2 ;;
  *) try_again "$code" ;;
esac
