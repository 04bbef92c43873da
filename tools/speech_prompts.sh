#!/usr/bin/env bash
# Fetches the recordings that examples/audio_classification.py reads: Debian's
# asterisk-core-sounds 1.6.1 (CC BY-SA 3.0, CC BY 3.0), 98 MB, into
# .data/speech_prompts. Needs apt-get on Debian or a descendant, but not root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

languages=(en es fr it ru)
folder=.data/speech_prompts
for command in apt-get dpkg-deb; do
    command -v "$command" >/dev/null || {
        echo "$command is needed, which Debian has. Elsewhere, unpack" \
            "asterisk-core-sounds-{en,es,fr,it,ru}-wav 1.6.1 from" \
            "https://packages.debian.org into $folder." >&2
        exit 1
    }
done
packages="$(mktemp -d)"
trap 'rm -r "$packages"' EXIT
(
    cd "$packages"
    for language in "${languages[@]}"; do
        apt-get -qq -o APT::Sandbox::User=root download \
            "asterisk-core-sounds-$language-wav=1.6.1-1" || {
            echo "Debian 12 has this version; is its index there" \
                "(apt-get update)?" >&2
            exit 1
        }
    done
    sha256sum --check --quiet <<'EOF'
2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d  asterisk-core-sounds-en-wav_1.6.1-1_all.deb
9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903  asterisk-core-sounds-es-wav_1.6.1-1_all.deb
8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e  asterisk-core-sounds-fr-wav_1.6.1-1_all.deb
5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb  asterisk-core-sounds-it-wav_1.6.1-1_all.deb
ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201  asterisk-core-sounds-ru-wav_1.6.1-1_all.deb
EOF
)
# Whole or not at all: tools/test.sh takes the folder for the recordings.
rm -rf "$folder.part"
mkdir -p "$folder.part"
for package in "$packages"/*.deb; do
    dpkg-deb --extract "$package" "$folder.part"
done
rm -rf "$folder"
mv "$folder.part" "$folder"
echo "Recordings in $folder"
