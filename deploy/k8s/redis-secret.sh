#!/bin/sh
# Prints the Secret `triserve-redis`: a user who may do what the prompt cache does and nothing else, with a new password, and the key that seals
# what gateways keep there. A second Secret of this kind empties the cache, as nothing sealed with the first can be read.
#
#   sh deploy/k8s/redis-secret.sh        | kubectl apply -f -     for overlays without the component tls
#   sh deploy/k8s/redis-secret.sh --tls  | kubectl apply -f -     for overlays with it
set -eu

scheme=redis
ca_file=
case "${1-}" in
  "") ;;
  --tls)
    scheme=rediss
    ca_file="  ca-file: /etc/triserve/tls/ca.crt"
    ;;
  *)
    echo "usage: $0 [--tls]" >&2
    exit 2
    ;;
esac

random() {
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

password=$(random)
digest=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
# As prompt_cache/acl.py says; a test compares.
commands="+client|setinfo +command|info +del +eval +evalsha +exec +exists +expire +get +getrange +hdel +hexists +hget +hincrby +hlen +hmget \
+hset +hsetnx +hstrlen +info +multi +pexpire +pexpireat +ping +pttl +script|load +set +time +type +unlink +vadd +vcard +vrem +vsim \
+xadd +xlen +xrange +xread +zadd +zcard +zrange +zrangebyscore +zrem +zscore"

cat <<END
apiVersion: v1
kind: Secret
metadata:
  name: triserve-redis
  namespace: triserve
  labels:
    app.kubernetes.io/part-of: triserve
type: Opaque
stringData:
  url: $scheme://triserve:$password@redis:6379/0
  cache-secret: $(random)
$ca_file
  users.acl: |
    user default off
    user triserve on #$digest resetkeys ~triserve:cache:* resetchannels -@all $commands
END
