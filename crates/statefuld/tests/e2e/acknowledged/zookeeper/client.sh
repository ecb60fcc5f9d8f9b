#!/bin/bash
# Creates /written/1, /written/2 … through whichever member answers; those that were acknowledged are in /data/acknowledged.
cd /data && touch acknowledged begun
members=zookeeper-0.zookeeper:2181,zookeeper-1.zookeeper:2181,zookeeper-2.zookeeper:2181
while :; do
  {
    echo "create /written"
    n=$(sort -n acknowledged begun | tail -n 1)
    while :; do
      n=$((n + 1))
      echo $n >> begun
      echo "create /written/$n" || exit
      sleep 0.1
    done
  } | zk-cli $members 2>&1 | sed -u -n 's|^Created /written/||p' >> acknowledged
  sleep 0.2
done
