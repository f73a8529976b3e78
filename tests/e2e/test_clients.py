"""The official OpenAI client, LiteLLM and LangChain against the real model; usage is the same whatever way one asks."""
import unittest

import openai

from harness import NAME, Server

QUESTION = [{"role": "user", "content": "What is a mill race? Answer in one sentence."}]


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--api-key", "test-key").__enter__()
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="test-key", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)

    def chat(self, **options):
        options = {"model": NAME, "messages": QUESTION, "max_tokens": 32, "temperature": 0, **options}
        return self.client.chat.completions.create(**options)

    def collect(self, stream):
        """(texts by choice, finish reasons by choice, usage)"""
        texts, finishes, usage = {}, {}, None
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                if choice.finish_reason:
                    finishes[choice.index] = choice.finish_reason
            if chunk.usage:
                usage = chunk.usage
        return texts, finishes, usage

    def test_models(self):
        models = self.client.models.list()
        self.assertEqual([m.id for m in models.data], [NAME])
        self.assertEqual(self.client.models.retrieve(NAME).id, NAME)
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("no-such")

    def test_wrong_key(self):
        other = openai.OpenAI(base_url=self.server.url + "/v1", api_key="wrong", max_retries=0)
        with self.assertRaises(openai.AuthenticationError) as caught:
            other.models.list()
        self.assertEqual(caught.exception.code, "invalid_api_key")

    def test_chat_and_stream_are_the_same(self):
        whole = self.chat()
        self.assertTrue(whole.choices[0].message.content.strip())
        self.assertIn(whole.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)
        texts, finishes, usage = self.collect(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(texts[0], whole.choices[0].message.content)
        self.assertEqual(finishes[0], whole.choices[0].finish_reason)
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens),
                         (whole.usage.prompt_tokens, whole.usage.completion_tokens))
        self.assertLess(usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens)

    def test_choices(self):
        whole = self.chat(n=3, temperature=1, seed=7, max_tokens=24)
        texts, _, usage = self.collect(self.chat(n=3, temperature=1, seed=7, max_tokens=24, stream=True,
                                                 stream_options={"include_usage": True}))
        self.assertEqual([texts[i] for i in range(3)], [c.message.content for c in whole.choices])
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(usage.prompt_tokens, whole.usage.prompt_tokens)
        self.assertEqual(usage.prompt_tokens, self.chat().usage.prompt_tokens)  # the prompt counts once
        self.assertGreater(len({c.message.content for c in whole.choices}), 1)

    def test_stop_string(self):
        free = self.chat(max_tokens=40).choices[0].message.content
        words = free.split()
        stop = " " + words[4]
        for stream in (False, True):
            if stream:
                texts, finishes, usage = self.collect(self.chat(max_tokens=40, stop=[stop], stream=True,
                                                                stream_options={"include_usage": True}))
                text, finish = texts[0], finishes[0]
            else:
                answer = self.chat(max_tokens=40, stop=[stop])
                text, finish, whole_usage = answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage
        self.assertEqual(text, free[:free.index(stop)])
        self.assertEqual(finish, "stop")
        self.assertEqual(usage.completion_tokens, whole_usage.completion_tokens)
        kept = self.chat(max_tokens=40, stop=[stop], extra_body={"include_stop_str_in_output": True})
        self.assertEqual(kept.choices[0].message.content, free[:free.index(stop) + len(stop)])

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=3, max_tokens=8)
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), answer.usage.completion_tokens)
        for entry in content:
            self.assertEqual(len(entry.top_logprobs), 3)
            self.assertLessEqual(entry.logprob, 0)
            self.assertAlmostEqual(entry.logprob, entry.top_logprobs[0].logprob)  # greedy: the chosen one is the best
        self.assertEqual(b"".join(bytes(e.bytes) for e in content).decode(), answer.choices[0].message.content)

    def test_echo_scores_the_prompt(self):
        answer = self.client.completions.create(model=NAME, prompt="The sun rises in the east", max_tokens=4, temperature=0,
                                                echo=True, logprobs=2)
        logprobs = answer.choices[0].logprobs
        self.assertTrue(answer.choices[0].text.startswith("The sun rises in the east"))
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertTrue(all(value <= 0 for value in logprobs.token_logprobs[1:]))
        self.assertEqual("".join(logprobs.tokens), answer.choices[0].text)
        self.assertEqual(len(logprobs.tokens), answer.usage.total_tokens)

    def test_sampling_parameters_take_effect(self):
        greedy = self.chat(max_tokens=16).choices[0].message.content
        self.assertEqual(self.chat(max_tokens=16, temperature=2, extra_body={"top_k": 1}).choices[0].message.content, greedy)
        self.assertEqual(self.chat(max_tokens=16, temperature=2, top_p=1e-6).choices[0].message.content, greedy)
        self.assertEqual(self.chat(max_tokens=16, temperature=2, extra_body={"min_p": 1.0}).choices[0].message.content, greedy)
        seeded = [self.chat(max_tokens=16, temperature=1, seed=s).choices[0].message.content for s in (1, 1, 2)]
        self.assertEqual(seeded[0], seeded[1])
        self.assertNotEqual(seeded[0], seeded[2])
        first = self.server.post("/tokenize", {"model": NAME, "prompt": "A"}, {"Authorization": "Bearer test-key"})[1]["tokens"][0]
        biased = self.chat(max_tokens=3, logit_bias={str(first): 100}).choices[0].message.content
        self.assertEqual(biased, "AAA")
        repeated = self.chat(max_tokens=3, logit_bias={str(first): 100}, presence_penalty=2).choices[0].message.content
        self.assertEqual(repeated, "AAA")  # 100 outweighs 2
        self.assertNotEqual(self.chat(max_tokens=24, extra_body={"repetition_penalty": 2.0}).choices[0].message.content,
                            self.chat(max_tokens=24).choices[0].message.content)
        long = self.chat(max_tokens=64, extra_body={"ignore_eos": True})
        self.assertEqual((long.usage.completion_tokens, long.choices[0].finish_reason), (64, "length"))
        least = self.chat(max_tokens=64, extra_body={"min_tokens": 60})
        self.assertGreaterEqual(least.usage.completion_tokens, 60)

    def test_unsupported_is_refused_by_name(self):
        for name, value in (("response_format", {"type": "json_object"}), ("audio", {"voice": "x", "format": "mp3"}),
                            ("web_search_options", {})):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.chat(extra_body={name: value})
            self.assertEqual(caught.exception.param, name)

    def test_context_length(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(max_tokens=100000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_prefix_cache_is_told(self):
        text = "Once upon a time there was a miller who lived beside a river. " * 20
        first = self.client.completions.create(model=NAME, prompt=text, max_tokens=4, temperature=0)
        second = self.client.completions.create(model=NAME, prompt=text, max_tokens=4, temperature=0)
        self.assertEqual(first.choices[0].text, second.choices[0].text)
        self.assertGreater(second.usage.prompt_tokens_details.cached_tokens, 100)
        self.assertEqual(second.usage.prompt_tokens_details.cached_tokens % 16, 0)

    def test_litellm(self):
        import litellm
        answer = litellm.completion(model=f"hosted_vllm/{NAME}", messages=QUESTION, api_base=self.server.url + "/v1",
                                    api_key="test-key", max_tokens=16, temperature=0)
        self.assertEqual(answer.choices[0].message.content, self.chat(max_tokens=16).choices[0].message.content)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(
            model=f"hosted_vllm/{NAME}", messages=QUESTION, api_base=self.server.url + "/v1", api_key="test-key", max_tokens=16,
            temperature=0, stream=True) if chunk.choices)
        self.assertEqual(text, answer.choices[0].message.content)

    def test_langchain(self):
        from langchain_openai import ChatOpenAI
        chat = ChatOpenAI(model=NAME, base_url=self.server.url + "/v1", api_key="test-key", max_tokens=16, temperature=0)
        answer = chat.invoke("Name a colour.")
        self.assertTrue(answer.content)
        self.assertGreater(answer.usage_metadata["output_tokens"], 0)
        self.assertEqual("".join(chunk.content for chunk in chat.stream("Name a colour.")), answer.content)

    def test_metrics_are_prometheus_text(self):
        from prometheus_client.parser import text_string_to_metric_families
        self.chat(max_tokens=4)
        families = {f.name: f for f in text_string_to_metric_families(self.server.get("/metrics")[1])}
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prompt_tokens",
                     "vllm:generation_tokens", "vllm:request_success", "vllm:time_to_first_token_seconds",
                     "vllm:inter_token_latency_seconds", "vllm:e2e_request_latency_seconds", "vllm:prefix_cache_queries",
                     "vllm:num_preemptions"):
            self.assertIn(name, families)


if __name__ == "__main__":
    unittest.main()
