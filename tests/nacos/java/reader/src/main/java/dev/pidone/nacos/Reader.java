package dev.pidone.nacos;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;

import com.alibaba.nacos.api.NacosFactory;
import com.alibaba.nacos.api.exception.NacosException;
import com.alibaba.nacos.api.naming.NamingService;
import com.alibaba.nacos.api.naming.pojo.Instance;
import com.alibaba.nacos.common.utils.JacksonUtils;

/**
 * The official client of the server HOST:PORT, which is the first argument; user and password may follow. Each line of
 * the input, {@code NAMESPACE GROUP SERVICE}, is answered with a line of JSON: the instances that the server leads
 * clients to, or null if it does not answer. It ends with its input.
 */
public final class Reader {
    public static void main(String[] arguments) throws Exception {
        Map<String, NamingService> clients = new HashMap<>();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            Object answer;
            try {
                NamingService client = clients.get(words[0]);
                if (client == null) {
                    client = connect(arguments, words[0]);
                    clients.put(words[0], client);
                }
                answer = read(client.getAllInstances(words[2], words[1], false));
            } catch (NacosException | RuntimeException error) {
                System.err.println(error);
                answer = null;
            }
            System.out.println("= " + JacksonUtils.toJson(answer));
        }
        Runtime.getRuntime().halt(0);
    }

    private static NamingService connect(String[] arguments, String namespace) throws NacosException {
        Properties properties = new Properties();
        properties.setProperty("serverAddr", arguments[0]);
        properties.setProperty("namespace", namespace);
        if (arguments.length > 1) {
            properties.setProperty("username", arguments[1]);
            properties.setProperty("password", arguments[2]);
        }
        return NacosFactory.createNamingService(properties);
    }

    private static List<Object> read(List<Instance> instances) {
        List<Object> read = new ArrayList<>();
        for (Instance instance : instances) {
            Map<String, Object> values = new LinkedHashMap<>();
            values.put("ip", instance.getIp());
            values.put("port", instance.getPort());
            values.put("healthy", instance.isHealthy());
            values.put("enabled", instance.isEnabled());
            values.put("weight", instance.getWeight());
            values.put("cluster", instance.getClusterName());
            values.put("metadata", instance.getMetadata());
            read.add(values);
        }
        return read;
    }
}
