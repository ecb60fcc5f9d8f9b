#!/bin/bash
# Sets key:1, key:2 … on the master; those that it acknowledged are in /data/acknowledged.
cd /data && touch acknowledged refused
n=$(sort -n acknowledged refused | tail -n 1)
while :; do
  n=$((n + 1))
  answer=$(timeout 2 redis-cli -h redis-0.redis set key:$n $n 2>&1)
  if [ "$answer" = OK ]; then echo $n >> acknowledged; else echo $n >> refused; fi
  sleep 0.05
done
