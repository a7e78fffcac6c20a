// Common code of both scripts: generates reports like those of NetWatch, and sends them.
//
// A virtual user is one browser. It has a clientId, numbers its reports, and has its own connection. The id of a report
// consists of clientId and seq. It is unique across all runs.

import http from 'k6/http';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';

const URL = `${__ENV.BASE_URL || 'http://localhost:8080'}/api/v1/reports`;
const PARAMS = { headers: { 'Content-Type': 'application/json' }, timeout: '10s' };

// The reports that the server answered with 200.
const acknowledged = new Counter('acknowledged');
// The time from the decision to send until the answer. http_req_duration does not include the connection setup, which
// is most of the waiting time in a burst.
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

// JavaScript in k6 is slow. So each browser generates 256 samples as text once and then reuses them. The latencies are
// log-normal with a median of 40 ms, and 95 % are below 110 ms. Three samples are timeouts.
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

// Returns a report of this browser for a time in milliseconds. It has 1 to 6 kB of ASCII, so its length in characters
// equals its length in bytes. run.sh expects clientId and seq at the start of the line.
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
    // Cycles through all samples. Math.random and `${}` would cost more than everything else.
    sample = (sample * 5 + 1) & 255;
    history.push('{"t":' + (t + sample) + SAMPLES[sample]);
  }
  const status = sample < TIMEOUTS ? 'down' : 'up';
  return `{"name":"${name}","url":"https://${name}.example.com/health","status":"${status}","history":[${history.join(',')}]}`;
}

// Sends a report and checks the answer. Status 200 alone counts as an acknowledgement.
export function send({ id, body }) {
  const response = http.post(URL, body, PARAMS);
  if (response.status === 200) {
    acknowledged.add(1);
    // `blocked` includes the connection setup.
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
