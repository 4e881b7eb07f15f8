// The openai client for Node against the proxy. Prints what it saw as one line of JSON; test_node_client.py judges it.
import OpenAI, { APIUserAbortError, AuthenticationError, NotFoundError } from "openai";

const baseURL = process.env.PREAMBLE_TEST_BASE_URL;
const client = new OpenAI({ baseURL, apiKey: process.env.PREAMBLE_TEST_API_KEY, maxRetries: 0 });
const tag = "x-preamble-constitution";
const seen = {};

seen.models = (await client.models.list()).data.map((model) => model.id);
const request = {
  model: seen.models[0],
  messages: [{ role: "user", content: "Name three fruits." }],
  temperature: 0,
  max_tokens: 12,
};

const whole = await client.chat.completions.create(request).withResponse();
seen.tag = whole.response.headers.get(tag);
seen.content = whole.data.choices[0].message.content;
seen.usage = whole.data.usage.completion_tokens;

const streamed = await client.chat.completions
  .create({ ...request, stream: true, stream_options: { include_usage: true } })
  .withResponse();
seen.streamedTag = streamed.response.headers.get(tag);
seen.streamedContent = "";
for await (const chunk of streamed.data) {
  seen.streamedContent += chunk.choices[0]?.delta?.content ?? "";
  seen.streamedUsage = chunk.usage?.completion_tokens ?? seen.streamedUsage;
}

const optedOut = await client.chat.completions.create(request, { headers: { [tag]: "none" } }).withResponse();
seen.optedOutTag = optedOut.response.headers.get(tag);

const response = await client.responses.create({
  model: request.model,
  input: "Name three fruits.",
  max_output_tokens: 8,
  temperature: 0,
});
seen.responseText = response.output_text;

const endless = await client.chat.completions.create({ ...request, max_tokens: 4000, ignore_eos: true, stream: true });
let chunks = 0;
try {
  for await (const _ of endless) {
    chunks += 1;
    if (chunks === 3) endless.controller.abort();
  }
} catch (error) {
  if (!(error instanceof APIUserAbortError)) throw error;
}
seen.chunksBeforeAbort = chunks;

const errorOf = async (promise, kind) => {
  try {
    await promise;
  } catch (error) {
    return { isKind: error instanceof kind, status: error.status, code: error.code, hasMessage: error.message.length > 20 };
  }
  return null;
};
seen.wrongKey = await errorOf(
  new OpenAI({ baseURL, apiKey: "pre_wrong", maxRetries: 0 }).models.list(),
  AuthenticationError,
);
seen.wrongModel = await errorOf(client.chat.completions.create({ ...request, model: "no-such-model" }), NotFoundError);

console.log(JSON.stringify(seen));
