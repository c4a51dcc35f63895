#!/usr/bin/env bash
# Installs what `make slurm-test` needs where something is missing; elsewhere the tests say why they are skipped.
set -euo pipefail
missing=
for program in munged slurmctld slurmd sbatch ip pdsh sshd; do
  PATH=$PATH:/usr/sbin:/sbin command -v $program >/dev/null || missing+=" $program"
done
[[ -z $missing ]] && exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "not installed:$missing; that takes root and Debian's packages"
  exit 0
fi
echo "installing Slurm, ssh and pdsh: something of$missing is missing"
packages=(slurm-wlm slurm-client munge iproute2 pdsh openssh-server)
# no service is to be started: the tests start their own
policy=/usr/sbin/policy-rc.d
[[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && trap 'rm -f $policy' EXIT; }
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null || {
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
} || echo "apt-get could not install them"
