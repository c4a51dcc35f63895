# ---- the same for every preparation from here on ---------------------------------------------------------------------
# Exit codes are those of launchers/prepare_data.py: 0: done; 2: bad input; any other: a failure.
set -u
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT # may come from another job, through the submitting shell
case $1 in
  plan) command+=(--plan) ;;
  task) command+=(--tasks "$tasks" --task "$SLURM_ARRAY_TASK_ID") ;;
  merge) command+=(--merge) ;;
  *) echo "the argument must be plan, task or merge, not $1" >&2; exit 2 ;;
esac
srun --ntasks=1 "${container_options[@]}" "${python[@]}" "${command[@]}"
