# ---- from here on the same for every run -----------------------------------------------------------------------------
# Argument: the step to stop at; default: the run's last.
# Ends with 0: that step is reached and saved.  2: bad input, not tried again.  75: saved, but the job could not be
# queued again: submit it again.  Else: a failure that was tried max_attempts times without a new checkpoint.
set -uo pipefail
state=$run/slurm
target=${1:-$total_steps}
(($# > 0)) && overrides+=("training.stop_after_steps=$target")
# the last task of an array has the array's own id as SLURM_JOB_ID
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
# of another job, in the environment of who submitted
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT PMI_RANK PMI_SIZE PMIX_RANK
unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK
mkdir -p "$state"
touch "$state/excluded-nodes"

say() { printf '%s job %s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$job" "$*"; }
# every name; who writes into the file may write lists, node[1-3,7]
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

# ends the job after it was put back into the queue, or with code $1 where that cannot be
try_again() {
  local job_state nodes
  trap '' TERM # the requeue ends all of the job's processes; what is started here must still do its work
  for _ in 1 2 3 4 5 6; do # a controller may be slow to answer
    job_state=$(scontrol -o show job "$job" | grep -oE '(JobState|Reason)=[^ ]*' | paste -sd' ') && break
    sleep 10
  done
  case $job_state in
    JobState=RUNNING* | *Reason=TimeLimit) ;;
    # cancelled, or Slurm itself queues it again because of a node or a preemption
    *) say "ends, the rest is Slurm's: $job_state"; exit "$1" ;;
  esac
  nodes=$(excluded | paste -sd,)
  if ! scontrol requeue "$job"; then
    say "cannot be queued again; to go on submit $script"
    exit "$1"
  fi
  # Slurm takes this only of a waiting job, which this one is now, although its script still runs for a moment
  [[ -n $nodes ]] && scontrol update JobId="$job" ExcNodeList="$nodes"
  exit "$1"
}

# counts starts since the last new checkpoint, whoever ended them
count_attempt() {
  local before attempts
  read -r before attempts 2>/dev/null <"$state/attempts" || { before= attempts=0; }
  [[ $before == "$(latest)" ]] || attempts=0
  # uncounted starts would never end
  if ! printf '%s %s\n' "$(latest)" $((attempts + 1)) >"$state/attempts"; then
    say "given up: $state/attempts cannot be written, the disk may be full. Make room, then submit again"
    exit 1
  fi
  if ((attempts >= max_attempts)); then
    say "given up: $attempts starts without a new checkpoint (now $(latest)). Read $run/log/, then submit again"
    exit 1
  fi
  say "start $((attempts + 1)) of at most $max_attempts from checkpoint $(latest), on $SLURM_JOB_NODELIST"
}

# one process a node looks at it and meets the others; each leaves a line: ok, bad REASON, or unclear REASON
check_nodes() {
  local node verdict silent left unclear=0 bad=()
  rm -rf "$state/nodes" && mkdir -p "$state/nodes"
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    excluded | grep -qxF "$node" && { say "$node was found bad before"; try_again 1; }
  done
  timeout -k 10 "$check_seconds" srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --wait=0 "${container_options[@]}" "${python[@]}" "$project/launchers/check_nodes.py" "${check_options[@]}" "$state/nodes" &
  wait_for $!
  silent='unclear left no verdict, see above' # nobody answered: rather the check itself, such as a wrong Python
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
    say "none of them is left out: what all of them lack is rather something they share"
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

# waits for a step although signals come in between; its exit code is in $code
step_pid=
wait_for() {
  step_pid=$1
  wait "$step_pid"; code=$?
  while kill -0 "$step_pid" 2>/dev/null; do wait "$step_pid"; code=$?; done
  step_pid=
}
# Slurm tells the ranks itself; who signals this script alone means them too
trap '[[ -n $step_pid ]] && kill -USR2 "$step_pid"' TERM USR2

# a job for every kept checkpoint that has none yet
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
# no --kill-on-bad-exit: ranks that end one after the other with 75 would be killed, and the code be lost
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
