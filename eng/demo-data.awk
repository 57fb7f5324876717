# Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
# WordNet's data.noun -> two TSV files (definition, kind): the 20 kinds with 700 definitions or more, 200 of each for
# training, 60 for testing. Only the definition: examples in quotes are cut off. The choice depends on the file alone.
BEGIN {
    split("Tops act animal artifact attribute body cognition communication event feeling food group location motive object person phenomenon plant possession process quantity relation shape state substance time", kinds, " ")
}
/^[0-9]/ {
    bar = index($0, "| ")
    gloss = substr($0, bar + 2)
    example = match(gloss, /; *"/)
    if (example) gloss = substr(gloss, 1, example - 1)
    if (substr(gloss, 1, 1) == "\"") next
    gsub(/\t/, " ", gloss)
    gsub(/^ +| +$/, "", gloss)
    if (gloss == "" || seen[gloss]++) next
    kind = kinds[$2 - 2]
    count[kind]++
    row[kind, count[kind]] = gloss
}
# A generator of its own (Park and Miller), so that every awk draws the same.
function draw(n) {
    state = (state * 16807) % 2147483647
    return 1 + state % n
}
END {
    state = 20240607
    print "definition\tkind" > train
    print "definition\tkind" > test
    total = 0
    for (k = 1; k in kinds; k++) {
        kind = kinds[k]
        if (count[kind] < 700) continue
        for (i = count[kind]; i > 1; i--) {
            j = draw(i)
            swap = row[kind, i]; row[kind, i] = row[kind, j]; row[kind, j] = swap
        }
        for (i = 1; i <= 260; i++) print row[kind, i] "\t" kind > (i <= 200 ? train : test)
    }
}
