#!/usr/bin/env bash
# Subscribe to the results of edged devices with nothing but mosquitto_sub and jq, and prove that none is missing and
# none came twice in effect. Copy freely. Ends after -w seconds, or earlier when -n rows came. Exit code 1: not proved.
set -euo pipefail

host=localhost port=1883 root=edged fleet=+ device=+ rows=0 seconds=30 strict=false
usage="usage: $0 [-h HOST] [-p PORT] [-r ROOT] [-f FLEET] [-d DEVICE] [-n ROWS] [-w SECONDS] [-s (redelivery fails)]"
while getopts "h:p:r:f:d:n:w:s" option; do
    case $option in
        h) host=$OPTARG ;;
        p) port=$OPTARG ;;
        r) root=$OPTARG ;;
        f) fleet=$OPTARG ;;
        d) device=$OPTARG ;;
        n) rows=$OPTARG ;;
        w) seconds=$OPTARG ;;
        s) strict=true ;;
        *) echo "$usage" >&2; exit 2 ;;
    esac
done

heard=$(mktemp)
mosquitto_sub -V 5 -h "$host" -p "$port" -q 1 -W "$seconds" -t "$root/v1/$fleet/$device/result/+" > "$heard" &
listener=$!
trap 'kill "$listener" 2> /dev/null || true; rm -f "$heard"' EXIT

# One line is one event, if the results hold no line breaks; jq reads them in any case.
while kill -0 "$listener" 2> /dev/null; do
    sleep 0.5
    if [ "$rows" -gt 0 ] && [ "$(jq -n '[inputs.data.rows[].seq] | length' "$heard" 2> /dev/null || echo 0)" -ge "$rows" ]; then
        sleep 1 # whatever comes behind the last expected row would be one too many
        break
    fi
done

jq -n -r --argjson rows "$rows" --argjson strict "$strict" '
    [inputs.data] as $events
    | $events | group_by([.device, .stream, .epoch]) | map(
        .[0] as $e
        | [.[].rows[]] as $came
        # The same row again is a redelivery; another row under the same number is a double.
        | ($came | unique) as $different
        | ([$different[].seq] | unique | length) as $numbers
        | ([$different[].seq, (.[].gaps[] | range(.first; .last + 1))] | unique | length) as $covered
        | ([.[].last] + [$events[]
            | select(.device == $e.device and .stream == $e.stream and .predecessor.epoch == $e.epoch)
            | .predecessor.last // 0] | max) as $last
        | {stream: "\($e.device)/\($e.stream)", epoch: $e.epoch, rows: $numbers, missing: ($last - $covered),
           doubled: (($different | length) - $numbers), redelivered: (($came | length) - ($different | length)),
           frames: [$different | unique_by(.seq) | .[] | select(.key != null) | [.source, .key]]}
    )
    # A frame that has two numbers is a double, even if the numbers belong to two epochs.
    | (group_by(.stream) | map([.[].frames[]] | length - (unique | length)) | add // 0) as $twice
    | (map("\(.stream) epoch \(.epoch): rows=\(.rows) missing=\(.missing)") | .[]),
      ((map(.rows) | add // 0) as $n | (map(.missing) | add // 0) as $missing
       | ((map(.doubled) | add // 0) + $twice) as $doubled | (map(.redelivered) | add // 0) as $again
       | "subscriber: rows=\($n) missing=\($missing) doubled=\($doubled) redelivered=\($again)",
         if $n < $rows or $missing > 0 or $doubled > 0 or ($strict and $again > 0) then ("" | halt_error(1)) else empty end)
' "$heard"
