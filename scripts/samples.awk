# Reads DCGM CSV (long or wide layout) without Nexus' own parser, as the ground truth that
# scripts compare the pipeline with. Counts records, not lines: a quoted field may hold newlines.
#   awk -f samples.awk FILE                prints: rows samples points gpus hosts
#   awk -v mode=list -f samples.awk FILE   prints: timestamp, uuid, host, metric, value by tab
# A sample is a row's measured value (long) or one measured column of a row (wide); a point is
# one GPU at one instant. Blank values and DCGM's blank sentinels are absent.

# A line belongs to the record of the one before while a quote is open.
{
    record = open_quote ? record "\n" $0 : $0
    quotes = gsub(/"/, "&")
    open_quote = (open_quote + quotes) % 2
    if (!open_quote) take(record)
}

END {
    if (failed) exit 1
    if (open_quote) take(record)
    if (mode != "list") print rows + 0, samples + 0, points + 0, gpus + 0, hosts + 0
}

function take(text) {
    sub(/\r$/, "", text)
    if (text == "") return
    if (!columns) { take_header(text); return }
    rows++
    split_fields(text, columns)
    if (col["metric_name"]) {
        take_sample(field[col["metric_name"]], field[col["value"]])
    } else {
        for (c = 1; c <= columns; c++) if (is_metric[c]) take_sample(name[c], field[c])
    }
}

function take_header(text) {
    sub(/^\357\273\277/, "", text)
    columns = split_fields(text, 100000)
    for (c = 1; c <= columns; c++) {
        name[c] = tolower(field[c])
        if (name[c] == "gpu_uuid") name[c] = "uuid"
        if (!(name[c] in col)) col[name[c]] = c
        is_metric[c] = name[c] !~ /^(timestamp|gpu_id|hostname|uuid|device|modelname|model_name)$/
    }
    if (!col["timestamp"] || !col["uuid"]) {
        print "samples.awk: no timestamp and uuid column in the header" > "/dev/stderr"
        failed = 1
        exit 1
    }
    # Nothing behind the last column needed is worth splitting.
    if (col["metric_name"]) {
        columns = col["value"]
        if (col["hostname"] > columns) columns = col["hostname"]
        if (col["uuid"] > columns) columns = col["uuid"]
    }
}

function take_sample(metric, value,    at, uuid, host) {
    if (value !~ /^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$/ || is_blank(value)) return
    at = field[col["timestamp"]]; uuid = field[col["uuid"]]; host = field[col["hostname"]]
    samples++
    if (!((at, uuid) in seen_point)) { seen_point[at, uuid]; points++ }
    if (!(uuid in seen_gpu)) { seen_gpu[uuid]; gpus++ }
    if (!(host in seen_host)) { seen_host[host]; hosts++ }
    if (mode == "list") print at "\t" uuid "\t" host "\t" metric "\t" value
}

# DCGM's INT32, INT64 and FP64 blanks with their not-found, not-supported, no-permission kin.
function is_blank(value) {
    return value ~ /^21474836(3[2-9]|4[0-7])$/ || value ~ /^922337203685477579[2-5]/ ||
        value ~ /^140737488355(32[89]|33[01])(\.0*)?$/
}

# Splits text into field[1..], at most `most` of them; returns how many.
function split_fields(text, most,    n, at, value) {
    split("", field)
    while (n < most) {
        if (substr(text, 1, 1) == "\"") {
            value = ""
            text = substr(text, 2)
            while ((at = index(text, "\"")) > 0) {
                value = value substr(text, 1, at - 1)
                text = substr(text, at + 1)
                if (substr(text, 1, 1) != "\"") break
                value = value "\""
                text = substr(text, 2)
            }
            field[++n] = value
            if (substr(text, 1, 1) != ",") break
            text = substr(text, 2)
        } else if ((at = index(text, ",")) > 0) {
            field[++n] = substr(text, 1, at - 1)
            text = substr(text, at + 1)
        } else {
            field[++n] = text
            break
        }
    }
    return n
}
