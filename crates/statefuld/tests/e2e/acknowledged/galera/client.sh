#!/bin/bash
# Commits rows 1, 2 … by one member after the other; those that were acknowledged are in /data/acknowledged. Rows are long, so
# that a disk without room is noticed soon.
cd /data && touch acknowledged refused
sql() { timeout 8 mariadb --host="galera-$(($1 % 3)).galera" --user=app --password=change-me --connect-timeout=2 app -e "$2"; }
until sql 0 'create table if not exists t (n int primary key, rest longtext)'; do sleep 0.5; done
n=$(sort -n acknowledged refused | tail -n 1)
while :; do
  n=$((n + 1))
  if sql $n "insert into t values ($n, repeat('x', 50000))"; then echo $n >> acknowledged; else echo $n >> refused; fi
  sleep 0.1
done
