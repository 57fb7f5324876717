// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// The third side of the scoring figure: ONNX Runtime over the same rows and batches. Needs the npm package
// onnxruntime-node (npm install onnxruntime-node --ignore-scripts) and the file that "pytorch_loop.py onnx FOLDER" wrote.
//   node eng/bench/onnx_score.mjs FOLDER THREADS [PAD] [STEPS]
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const [folder, threads, pad = '0', steps = '1e9'] = process.argv.slice(2);
const require = createRequire(join(process.env.ONNXRUNTIME_NODE ?? process.cwd(), 'package.json'));
const runtime = require('onnxruntime-node');
const numbers = name => readFileSync(join(folder, name), 'utf8').trim().split('\n').map(line => line.split(' ').map(Number));

const rows = numbers('score.rows').map(row => row.slice(1));
const batches = numbers('score.batches').slice(0, Number(steps));
const session = await runtime.InferenceSession.create(join(folder, 'model.onnx'), { intraOpNumThreads: Number(threads), interOpNumThreads: 1 });

function collate(batch) {
    const longest = Math.max(...batch.map(r => rows[r].length)), shape = [batch.length, longest];
    const ids = new BigInt64Array(batch.length * longest).fill(BigInt(pad)), mask = new BigInt64Array(ids.length);
    batch.forEach((r, i) => rows[r].forEach((id, j) => { ids[i * longest + j] = BigInt(id); mask[i * longest + j] = 1n; }));
    return { ids: new runtime.Tensor('int64', ids, shape), mask: new runtime.Tensor('int64', mask, shape) };
}

for (const batch of batches.slice(0, 3)) await session.run(collate(batch));
const began = performance.now(), scores = [];
let tokens = 0;
for (const batch of batches) {
    const result = await session.run(collate(batch));
    scores.push(...result.scores.data);
    tokens += batch.reduce((sum, r) => sum + rows[r].length, 0);
}
const seconds = (performance.now() - began) / 1000;
console.log(JSON.stringify({ tokens, seconds, tokensPerSecond: tokens / seconds, scores }));
