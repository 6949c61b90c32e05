#!/bin/sh
# What every AutoFT container runs first: no service starts without the secrets it needs, and none joins a Ray cluster that asks for no token.
#
#   AUTOFT_REQUIRES   names of variables that must name a secret file, for instance "AUTOFT_STORAGE_URL_FILE RAY_AUTH_TOKEN_PATH"
#   AUTOFT_JOIN_RAY   HOST:PORT of a cluster's head: a node without CPUs and GPUs joins it from here first, because a Ray driver has to
#                     run on a node of its cluster
#   AUTOFT_HOLD       1: when the command has come to an end that running it again would not change (done, wrong input, a conflict, a bug
#                     of a trial), wait to be stopped instead of ending, so that a restart policy does not run it for ever
#
# Exit code 78: a secret is missing. Otherwise the command's own.
set -eu

refuse() {
    echo "autoft: $1" >&2
    exit 78
}

value_of() {
    eval "printf '%s' \"\${$1:-}\""
}

for name in ${AUTOFT_REQUIRES:-}; do
    [ -n "$(value_of "$name")" ] || refuse "$name is not set; it must name the file that holds the secret"
done
for name in AUTOFT_STORAGE_URL_FILE RAY_AUTH_TOKEN_PATH AUTOFT_DASHBOARD_TOKEN_FILE ${AUTOFT_REQUIRES:-}; do
    file=$(value_of "$name")
    [ -n "$file" ] || continue
    hint="create secrets/$(basename "$file") (deploy/make-secrets.sh makes every missing one) and start again"
    [ -f "$file" ] || refuse "the secret file $file ($name) is missing: $hint"
    [ -r "$file" ] || refuse "the secret file $file ($name) cannot be read by user $(id -u): chmod 0444 it inside a folder of mode 0700"
    [ -s "$file" ] || refuse "the secret file $file ($name) is empty: $hint"
done
if [ "${1:-}" = ray ] || [ -n "${AUTOFT_JOIN_RAY:-}${RAY_ADDRESS:-}" ]; then
    [ "${RAY_AUTH_MODE:-}" = token ] || refuse "RAY_AUTH_MODE must be token: without it, whoever reaches the cluster can run code on it"
    [ -n "${RAY_AUTH_TOKEN_PATH:-}${RAY_AUTH_TOKEN:-}" ] || refuse "RAY_AUTH_TOKEN_PATH is not set; it must name the file that holds the cluster's token"
fi

if [ -n "${AUTOFT_JOIN_RAY:-}" ]; then
    # Ray hands a node's environment on to whatever runs there, which needs nothing of the database's.
    env -u AUTOFT_STORAGE_URL -u AUTOFT_STORAGE_URL_FILE -u PGPASSWORD -u PGPASSFILE -u OPENAI_API_KEY \
        -u AUTOFT_DASHBOARD_TOKEN -u AUTOFT_DASHBOARD_TOKEN_FILE \
        ray start --address="$AUTOFT_JOIN_RAY" --num-cpus=0 --num-gpus=0 --object-store-memory=134217728 --disable-usage-stats >&2
fi
[ "${AUTOFT_HOLD:-}" = 1 ] || exec "$@"

"$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do # a signal ends `wait` before the child has ended
    code=0
    wait "$child" || code=$?
done
# Not 5: the lock of a study may still be with a coordinator that has just gone.
case $code in
    0 | 2 | 6) ;;
    *) exit "$code" ;;
esac
trap 'exit "$code"' TERM INT
echo "autoft: ended with exit code $code, and starting again would end the same way; waiting to be stopped" >&2
while :; do
    sleep 3600 &
    wait $! || true
done
