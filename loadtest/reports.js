// NetWatch-like reports, and the way to send one: what both scripts share.
//
// A virtual user is one browser: it has a clientId, numbers its reports, and keeps its own connection. clientId and seq
// together are a report's id, which no other report has, of this run or of any other.

import http from 'k6/http';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';

const URL = `${__ENV.BASE_URL || 'http://localhost:8080'}/api/v1/reports`;
const PARAMS = { headers: { 'Content-Type': 'application/json' }, timeout: '10s' };

// What the server promised to keep.
const acknowledged = new Counter('acknowledged');
// From wanting to send until the answer is there. http_req_duration leaves out the opening of the connection, which is
// most of what a browser waits for in a burst.
const reportTime = new Trend('report_time', true);

const PLACES = [
  '{"country":"DE","city":"Berlin","timezone":"Europe/Berlin","lat":52.52,"lon":13.41}',
  '{"country":"FR","city":"Lyon","timezone":"Europe/Paris","lat":45.76,"lon":4.84}',
  '{"country":"US","city":"Chicago","timezone":"America/Chicago","lat":41.88,"lon":-87.63}',
  '{"country":"BR","city":"Recife","timezone":"America/Recife","lat":-8.05,"lon":-34.88}',
  '{"country":"KE","city":"Nairobi","timezone":"Africa/Nairobi","lat":-1.29,"lon":36.82}',
  '{"country":"IN","city":"Pune","timezone":"Asia/Kolkata","lat":18.52,"lon":73.86}',
  '{"country":"JP","city":"Osaka","timezone":"Asia/Tokyo","lat":34.69,"lon":135.5}',
  '{"country":"AU","city":"Perth","timezone":"Australia/Perth","lat":-31.95,"lon":115.86}',
];
const HOSTS = ['api', 'auth', 'cdn', 'images', 'search'];
const PROBE_INTERVAL_MS = 5000;

// k6's JavaScript is slow, so a browser draws 256 latencies once, ready as text, and then picks from them: log-normal
// around 40 ms, 95 % below 110 ms, and three time-outs.
const MEDIAN_MS = 40;
const SIGMA = 0.6;
const TIMEOUTS = 3;
const SAMPLES = Array.from({ length: 256 }, (_, i) => {
  if (i < TIMEOUTS) return ',"error":"timeout"}';
  const normal = Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  return `,"latency":${(MEDIAN_MS * Math.exp(SIGMA * normal)).toFixed(1)}}`;
});

const CLIENT_ID = crypto.randomUUID();
const GEO = PLACES[below(PLACES.length)];
let seq = 0;

function below(n) {
  return Math.floor(Math.random() * n);
}

// A report of this browser at a time in milliseconds: 1 to 6 kB of ASCII, so its length is its bytes.
// run.sh looks for clientId and seq at the start of the line.
export function report(atMs) {
  seq += 1;
  const probes = 10 + below(22);
  const hosts = [];
  for (let i = 2 + below(HOSTS.length - 1); i > 0; i--) {
    hosts.push(host(HOSTS[i - 1], probes, atMs));
  }
  const timestamp = new Date(atMs).toISOString();
  return {
    id: `${CLIENT_ID}/${seq}`,
    body: `{"clientId":"${CLIENT_ID}","seq":${seq},"timestamp":"${timestamp}","geo":${GEO},"hosts":[${hosts.join(',')}]}`,
  };
}

function host(name, probes, atMs) {
  const history = [];
  let sample = below(256);
  for (let t = atMs - probes * PROBE_INTERVAL_MS; t < atMs; t += PROBE_INTERVAL_MS) {
    sample = (sample * 5 + 1) & 255; // each of them once, then again; Math.random and `${}` cost more than all the rest
    history.push('{"t":' + (t + sample) + SAMPLES[sample]);
  }
  const status = sample < TIMEOUTS ? 'down' : 'up';
  return `{"name":"${name}","url":"https://${name}.example.com/health","status":"${status}","history":[${history.join(',')}]}`;
}

// Sends a report and checks the answer. A 200 is the server's promise, whatever else is in the answer.
export function send({ id, body }) {
  const response = http.post(URL, body, PARAMS);
  if (response.status === 200) {
    acknowledged.add(1);
    // "blocked" contains the opening of the connection.
    reportTime.add(response.timings.blocked + response.timings.duration);
    if (__ENV.LOG_ACKNOWLEDGED) console.log(`acknowledged ${id} ${body.length}`);
  }
  const answer = parse(response);
  check(response, {
    'the status is 200': () => response.status === 200,
    'the answer says ok': () => answer.status === 'ok',
    'one report is accepted': () => answer.accepted === 1,
  });
}

function parse(response) {
  try {
    return JSON.parse(response.body) || {};
  } catch {
    return {};
  }
}
