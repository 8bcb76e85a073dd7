#!/usr/bin/env bash
# Run once by the compose file: certificates for three nodes and a token, in /material.
set -euo pipefail
umask 077
cd /material
if [[ -e admin.token ]]; then
  echo "the certificates and the token are there already"
  exit 0
fi

engram cert create-ca --dir .
for node in node1 node2 node3; do
  engram cert create-node --dir . --name "$node" --host "$node" --host localhost --host 127.0.0.1
done
# Last: its presence says that all is there.
engram token create --token-file tokens --name admin --role admin >admin.token.new
chown -R engram:engram .
mv admin.token.new admin.token
