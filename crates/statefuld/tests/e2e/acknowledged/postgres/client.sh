#!/bin/bash
# Commits rows 1, 2 … on the primary; those that it acknowledged are in /data/acknowledged.
cd /data && touch acknowledged refused
export PGHOST=postgres-0.postgres PGUSER=postgres PGPASSWORD=change-me PGCONNECT_TIMEOUT=2
until psql -X -q -c 'create table if not exists t (n int primary key)'; do sleep 0.2; done
n=$(sort -n acknowledged refused | tail -n 1)
while :; do
  n=$((n + 1))
  if timeout 5 psql -X -q -c "insert into t values ($n)"; then echo $n >> acknowledged; else echo $n >> refused; fi
  sleep 0.05
done
