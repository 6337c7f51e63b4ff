#!/bin/sh
# A deployment that brings the machine no address is a bad one: nobody could update it any more.
for _second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
    if ip -oneline address show scope global up | grep -q inet; then exit 0; fi
    sleep 1
done
echo "no network interface has got an address" >&2
exit 1
