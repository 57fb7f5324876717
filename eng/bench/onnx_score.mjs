// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// The third side of the benchmark: ONNX Runtime over the same rows and batches, on the file that the library exports or on its
// quantised form. Needs the npm package onnxruntime-node (npm install onnxruntime-node --ignore-scripts) in $ONNXRUNTIME_NODE.
//   node eng/bench/onnx_score.mjs score|latency|first FOLDER FILE THREADS [SECONDS OF WARM-UP] [SECONDS]
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const [mode, folder, file, threads, warm = '1', seconds = '1'] = process.argv.slice(2);
const require = createRequire(join(process.env.ONNXRUNTIME_NODE ?? process.cwd(), 'package.json'));
const runtime = require('onnxruntime-node');
const CALLS = 300;
const numbers = name => readFileSync(join(folder, name), 'utf8').trim().split('\n').map(line => line.split(' ').map(Number));

const rows = numbers('score.rows').map(row => row.slice(1)), batches = numbers('score.batches');
const pad = BigInt(JSON.parse(readFileSync(join(folder, 'backbone', 'config.json'), 'utf8')).pad_token_id);
const session = await runtime.InferenceSession.create(join(folder, file), { intraOpNumThreads: Number(threads), interOpNumThreads: 1 });

function collate(batch) {
    const longest = Math.max(...batch.map(r => rows[r].length)), shape = [batch.length, longest];
    const ids = new BigInt64Array(batch.length * longest).fill(pad), mask = new BigInt64Array(ids.length);
    batch.forEach((r, i) => rows[r].forEach((id, j) => { ids[i * longest + j] = BigInt(id); mask[i * longest + j] = 1n; }));
    const inputs = { input_ids: ids, attention_mask: mask, token_type_ids: new BigInt64Array(ids.length) };
    return Object.fromEntries(session.inputNames.map(name => [name, new runtime.Tensor('int64', inputs[name], shape)]));
}

// Pass after pass until the time is over.
async function passes(seconds) {
    let scores = [], number = 0;
    for (const began = performance.now(); number === 0 || performance.now() - began < 1000 * seconds; number++) {
        scores = [];
        for (const batch of batches) scores.push(...(await session.run(collate(batch), ['logits'])).logits.data);
    }
    return { scores, number };
}

async function score() {
    await passes(Number(warm));
    const began = performance.now(), before = process.cpuUsage();
    const { scores, number } = await passes(Number(seconds));
    const cpu = process.cpuUsage(before), time = (performance.now() - began) / 1000;
    const tokens = number * batches.reduce((sum, batch) => sum + batch.reduce((s, r) => s + rows[r].length, 0), 0);
    return { tokens, seconds: time, cpuSeconds: (cpu.user + cpu.system) / 1e6, scores };
}

async function latency() {
    const milliseconds = [], scores = [], all = [...rows.keys()].slice(0, CALLS);
    for (let i = 0, began = performance.now(); performance.now() - began < 1000 * Number(warm); i++) await session.run(collate([all[i % all.length]]), ['probabilities']);
    for (const r of all) {
        const began = performance.now();
        const result = await session.run(collate([r]), ['probabilities']);
        const shares = Array.from(result.probabilities.data);
        milliseconds.push(performance.now() - began);
        scores.push(...shares);
    }
    return { milliseconds, scores };
}

async function first() {
    const result = await session.run(collate([0]), ['probabilities']);
    return { scores: Array.from(result.probabilities.data) };
}

const report = await { score, latency, first }[mode]();
const peak = readFileSync('/proc/self/status', 'utf8').match(/VmHWM:\s*(\d+)/);
console.log(JSON.stringify({ ...report, peakMemoryMiB: peak ? Number(peak[1]) / 1024 : 0 }));
