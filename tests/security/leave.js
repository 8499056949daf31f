// MQTT.js over WebSocket says one thing and leaves: `leave.js PORT USER PASSWORD TOPIC`.
const mqtt = require('mqtt')

const [port, username, password, topic] = process.argv.slice(2)
const client = mqtt.connect(`ws://127.0.0.1:${port}/mqtt`, { username, password, reconnectPeriod: 0 })
client.on('connect', () => {
  client.publish(topic, 'm')
  client.end(() => console.log('ok left'))
})
client.on('error', (error) => {
  console.log(`refused: ${error.message}`)
  client.end(true)
})
