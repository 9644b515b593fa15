// Asks a server with OpenAI's own JavaScript client and prints, as JSON, what the client understood.
// node client.cjs URL TOKEN; NODE_PATH names the folder of modules that holds `openai`.
const OpenAI = require("openai").default;

const [baseURL, apiKey] = process.argv.slice(2);
const HELLO = [{ role: "user", content: "What is a peg?" }];
const ASKED = { model: "run3/base", prompt: "A peg is", max_tokens: 12, temperature: 0 };

async function refused(promise) {
  try {
    await promise;
    return "was answered";
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, message: error.message };
  }
}

async function main() {
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  const told = {};
  told.models = [];
  for await (const model of client.models.list()) told.models.push(model.id);
  told.model = (await client.models.retrieve("run3/tuned")).object;

  const options = { model: "run3", messages: HELLO, max_tokens: 12, temperature: 1.2, seed: 4 };
  told.chat = await client.chat.completions.create({ ...options, n: 2, logprobs: true, top_logprobs: 2 });
  told.pieces = "";
  const chunks = await client.chat.completions.create({ ...options, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of chunks) {
    for (const choice of chunk.choices) {
      told.pieces += choice.delta.content ?? "";
      told.finish = choice.finish_reason ?? told.finish;
    }
    told.usage = chunk.usage ?? told.usage;
  }
  // The client's own assembling of a stream: it throws where a chunk does not follow from the ones before it.
  told.assembled = await client.chat.completions.stream(options).finalContent();

  told.completion = await client.completions.create({ ...ASKED, logprobs: 2 });
  told.completed = "";
  for await (const chunk of await client.completions.create({ ...ASKED, stream: true })) told.completed += chunk.choices[0].text;
  const stop = told.completion.choices[0].text.slice(5, 9);
  told.stopped = await client.completions.create({ ...ASKED, stop: [stop] });

  const vectors = await client.embeddings.create({ model: "run3", input: ["a peg", "a nut"] });
  told.lengths = vectors.data.map((d) => d.embedding.reduce((sum, x) => sum + x * x, 0));

  told.errors = {
    token: await refused(new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list()),
    model: await refused(client.chat.completions.create({ model: "gpt", messages: HELLO })),
    field: await refused(client.chat.completions.create({ ...options, temperature: 9 })),
    long: await refused(client.completions.create({ ...ASKED, prompt: "peg ".repeat(5000) })),
    body: await refused(client.completions.create({ ...ASKED, prompt: "a".repeat(2000000) })),
  };

  // A stream that fills the server; who comes then hears 429, and is answered on a later try once the first has left.
  const first = await client.completions.create({ ...ASKED, max_tokens: 900, n: 2, stream: true });
  for await (const _ of first) {
    told.errors.full = await refused(client.completions.create(ASKED));
    break; // closes the connection
  }
  const patient = new OpenAI({ baseURL, apiKey, maxRetries: 5 });
  told.later = (await patient.completions.create(ASKED)).choices[0].text;
  console.log(JSON.stringify(told));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
