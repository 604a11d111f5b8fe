#!/usr/bin/env bash
# Runs on every host of a TPU slice, as root: `tpu.sh up` gives it as the start-up script, so each
# boot runs it without arguments; the units that it starts run it with one. Nobody calls it by hand.
#
#   tpu_host.sh            sets the host up and starts the worker
#   tpu_host.sh work       runs the worker, again on exit code 75 and after crashes
#   tpu_host.sh ended      after the worker's last end: gives the slice back if there is no more to do
#   tpu_host.sh expired    the time is over: gives the slice back whatever runs
#   tpu_host.sh logs       copies the log into the bucket
set -euo pipefail
home=${MOE_PARITY_HOME:-/opt/moe-parity}
dev=${MOE_PARITY_DEV:-/dev}
code=$home/code

# An attribute of this machine, as `tpu.sh up` and Google set it.
attribute() {
  curl -sf -H "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
setting() { attribute "moe-parity-$1"; }

# The number of this host within the slice. Cloud TPU machines carry it; where a machine of an
# instance group does not, it is the place of its name among the names of the group.
machines() {
  gcloud compute instance-groups managed list-instances "$(setting name)" \
    --zone="$(setting zone)" --project="$(setting project)" --format="value(name)" | sort
}
host_number() {
  local names number=0 name
  attribute agent-worker-number && return
  if [ "$(setting hosts)" -gt 1 ]; then
    names=$(machines)
    for name in $names; do
      [ "$name" != "$(hostname -s)" ] || break
      number=$((number + 1))
    done
  fi
  echo "$number"
}

# How the processes of the slice find each other, one argument a line.
world() {
  local hosts names
  hosts=$(setting hosts)
  if [ "$hosts" = 1 ]; then
    return
  elif attribute agent-worker-number >/dev/null; then
    echo "--coordinator=auto"
  else
    names=$(machines)
    while [ "$(echo "$names" | wc -l)" -lt "$hosts" ]; do
      sleep 10
      names=$(machines)
    done
    echo "--coordinator=$(echo "$names" | head -n 1).$(setting zone).c.$(setting project).internal:8476"
    echo "--num-processes=$hosts"
    echo "--process-id=$(host_number)"
  fi
}

# Each life of the machine has a log of its own, so that a new one does not overwrite the last.
copy_logs() {
  gcloud storage cp "$home/log" \
    "$(setting logs)/host-$(host_number)-$(cat "$home/booted").log" >/dev/null 2>&1 || true
}

# Deletes the slice; where the service account may not, the machines switch themselves off, and
# `tpu.sh sweep` or `down` removes what is left.
give_back() {
  local name where
  name=$(setting name)
  where=("--zone=$(setting zone)" "--project=$(setting project)")
  echo "giving $name back: $1"
  copy_logs
  # The other hosts need a moment for their logs.
  [ "$(setting hosts)" = 1 ] || sleep "${MOE_PARITY_LAST_WORDS:-60}"
  if [ "$(setting api)" = tpu ]; then
    gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --async --quiet &&
      return
  else
    gcloud compute instance-groups managed delete "$name" "${where[@]}" --quiet && return
  fi
  echo "the slice could not be deleted; switching off"
  copy_logs
  shutdown -h now
}

# When this slice must be gone: the hours given, from the first boot, and not after the whole expiry.
set_expiry() {
  local now by_hours
  now=$(date +%s)
  if [ ! -f "$home/expires" ]; then
    by_hours=$(setting hours | awk -v now="$now" '{printf "%d", now + $1 * 3600}')
    printf '%s\n%s\n' "$by_hours" "$(setting expires)" | sort -n | head -n 1 >"$home/expires"
  fi
  echo $(($(cat "$home/expires") - now))
}

fetch() {
  local try
  for try in 1 2 3 4 5; do
    if gcloud storage cp "$(setting code)" "$home/code.tar.gz"; then
      rm -rf "$code"
      mkdir -p "$code"
      tar -xzf "$home/code.tar.gz" -C "$code"
      return
    fi
    sleep "$((try * ${MOE_PARITY_RETRY:-5}))"
  done
  return 1
}

# Whoever still holds the chips of this machine, which is ours alone, makes libtpu fail.
free_chips() {
  local device
  for device in "$dev"/accel* "$dev"/vfio/*; do
    [ ! -e "$device" ] || fuser -k "$device" || true
  done
  rm -f /tmp/libtpu_lockfile
}

start() {
  local left
  mkdir -p "$home"
  date -u +%Y%m%d-%H%M%S >"$home/booted"
  exec >>"$home/log" 2>&1
  echo "start of $(setting name), host $(host_number), commit $(setting commit)"
  attribute startup-script >"$home/tpu_host.sh"
  systemctl stop moe-parity moe-parity-expiry.timer moe-parity-logs.timer || true
  systemctl reset-failed moe-parity || true
  # First the switch that ends all this: whatever fails below, the chips are given back.
  left=$(set_expiry)
  if [ "$left" -le 0 ]; then
    give_back "its time is over"
    return
  fi
  systemd-run --unit=moe-parity-expiry --on-active="${left}s" bash "$home/tpu_host.sh" expired
  systemd-run --unit=moe-parity-logs --on-active=30s --on-unit-active=30s \
    bash "$home/tpu_host.sh" logs
  free_chips
  # A trap and no `if`: within an `if`, bash would ignore what fails inside.
  trap 'give_back "it could not be set up; the log says why"' EXIT
  fetch
  EXTRA=tpu bash "$code/launch/local.sh" --setup
  # Not the chips: a host that looks at them alone waits for the others of its slice.
  EXTRA=tpu bash "$code/launch/local.sh" doctor --skip-devices --workdir="$(setting workdir)"
  trap - EXIT
  systemd-run --unit=moe-parity --property=KillMode=mixed --property=TimeoutStopSec=90 \
    --property="ExecStopPost=/bin/bash $home/tpu_host.sh ended" \
    --setenv="HOME=/root" bash "$home/tpu_host.sh" work
}

work() {
  local command worker=() more=()
  exec >>"$home/log" 2>&1
  mapfile -t more < <(world)
  eval "command=($(setting command))" # quoted by tpu.sh
  # A study knows its workers by name: a slice that is started again takes its own run back.
  [ "${command[0]}" != study ] || worker=("--worker=$(setting name).$(setting zone)")
  cd "$code"
  export EXTRA=tpu PYTHONPATH=$code
  exec "$code/.venv/bin/python" -m moe_parity.launch supervise --name="$(setting name)" \
    --first-wait="${MOE_PARITY_RETRY:-5}" -- \
    bash "$code/launch/local.sh" "${command[@]}" "${more[@]}" "${worker[@]}"
}

# systemd says how the worker ended. 75 or a signal: the machine is being stopped, or somebody
# stopped the worker; what happens next is not ours to decide.
ended() {
  exec >>"$home/log" 2>&1
  echo "the worker ended: ${EXIT_CODE:-unknown} ${EXIT_STATUS:-}"
  copy_logs
  [ "${EXIT_CODE:-}" = exited ] || return 0
  case $EXIT_STATUS in
    0) [ "$(host_number)" != 0 ] || give_back "the study is complete, or others have what is left" ;;
    1 | 2) give_back "exit code $EXIT_STATUS will not change by starting again" ;;
  esac
}

case ${1:-start} in
  start) start ;;
  work) work ;;
  ended) ended ;;
  expired) give_back "its time is over" >>"$home/log" 2>&1 ;;
  logs) copy_logs ;;
  *) sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p;}' "$0" ;;
esac
